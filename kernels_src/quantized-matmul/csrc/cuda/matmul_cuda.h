#pragma once

#include "../matmul.h"

namespace khub::cuda {

// Asynchronous on `stream` (a cudaStream_t), no allocation, no synchronisation. Returns null, or what went
// wrong.
const char* matmul(const QuantizedMatmul& q, void* stream);

}  // namespace khub::cuda
