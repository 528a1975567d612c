// Products with e4m3 weights in float32: the same bits for a row of x in any batch and any split of the weights' rows.
#pragma once

#include <cstdint>

#include "../matmul.h"

namespace khub::cpu {

constexpr int64_t kFp8Rows = 64;  // of x that are multiplied by a tile before the next
constexpr int64_t kFp8Tile = 8;   // weight rows that are widened together

// Rows of x as floats, [rows, stride]: zeros after each up to a multiple of 8.
struct WideRows {
  int64_t first;
  int64_t rows;
  int64_t stride;
  float* values;
};

// Rows [begin, end) of those, from x.
void widen_x(const QuantizedMatmul& q, const WideRows& x, int64_t begin, int64_t end);

// Weight rows [begin, end) for all of `x`, `begin` a multiple of kFp8Tile.
void multiply_fp8(const QuantizedMatmul& q, const WideRows& x, int64_t begin, int64_t end);

// The same loops, each compiled for its own instruction set; to[m * kFp8Tile + n], at most kFp8Rows rows of x. Null
// where the build has none.
using SumFp8 = void (*)(const QuantizedMatmul& q, const float* x, int64_t x_stride, int64_t rows, int64_t first,
                        float* to);
extern const SumFp8 sum_fp8_baseline, sum_fp8_avx2;

}  // namespace khub::cpu
