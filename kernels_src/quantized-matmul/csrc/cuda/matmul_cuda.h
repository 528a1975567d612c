#pragma once

#include "../matmul.h"

namespace khub::cuda {

enum class Format { int4, int8, e4m3 };

inline Format format_of(const QuantizedMatmul& q) {
  return q.bits == 4 ? Format::int4 : q.e4m3 ? Format::e4m3 : Format::int8;
}

// Launchers: asynchronous on `stream` (a cudaStream_t), no allocation, no synchronisation. They return null, or what
// went wrong.
const char* matmul(const QuantizedMatmul& q, void* stream);

// The same on tensor cores, for what they can take: half precision or an x that may be rounded, and rows of 16-byte
// pieces. It needs memory for that x and for partial sums, so many floats (none: 0), on 16 bytes.
bool fits_mma(const QuantizedMatmul& q);
int64_t matmul_mma_floats(const QuantizedMatmul& q);
const char* matmul_mma(const QuantizedMatmul& q, float* workspace, void* stream);

}  // namespace khub::cuda
