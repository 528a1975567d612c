#pragma once

#include <cstdint>

#include "../matmul.h"

namespace khub::cpu {

constexpr int64_t kTileRows = 16;  // weight rows of one work item of `matmul`

// Weights in eight words of 32 bits, which are unpacked together.
inline int64_t weights_per_unpack(const QuantizedMatmul& q) { return 8 * 32 / q.bits; }

// Floats per row of the widened x.
inline int64_t widened_width(const QuantizedMatmul& q) {
  const int64_t unit = weights_per_unpack(q);
  return (q.k + unit - 1) / unit * unit;
}

// Rows [begin, end) of x as float32 in the order in which weights unpack, padded with zeros: [m,
// widened_width].
void widen(const QuantizedMatmul& q, float* widened, int64_t begin, int64_t end);

// Tiles [begin, end) of kTileRows weight rows, for all of x. Any split gives the same bits, and so does any
// m.
void matmul(const QuantizedMatmul& q, const float* widened, int64_t begin, int64_t end);

}  // namespace khub::cpu
