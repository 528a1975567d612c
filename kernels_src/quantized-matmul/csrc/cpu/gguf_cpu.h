// Products with GGUF's blocks in float32: the same bits for a row of x in any batch and any split of the weights' rows.
#pragma once

#include <cstdint>

#include "../gguf.h"

namespace khub::cpu {

constexpr int64_t kGgufRows = 64;  // of x that are multiplied by a tile before the next
constexpr int64_t kGgufTile = 8;   // weight rows that are widened together

// Rows of x as floats.
struct FloatRows {
  int64_t first;
  int64_t rows;
  const float* values;
  int64_t stride;
};

// Rows [begin, end) of x, from row `first` on, of float16 or bfloat16 to `to`, [rows, k].
void widen_rows(const GgufMatmul& q, int64_t first, int64_t begin, int64_t end, float* to);

// Weight rows [begin, end) for all of `x`.
void multiply_gguf(const GgufMatmul& q, const FloatRows& x, int64_t begin, int64_t end);

// The same loops, each compiled for its own instruction set; to[m * kGgufTile + n], at most kGgufTile weight rows and
// kGgufRows rows of x. Null where the build has none.
using SumGguf = void (*)(const GgufMatmul& q, const float* x, int64_t x_stride, int64_t rows, int64_t first,
                         int64_t weight_rows, float* to);
extern const SumGguf sum_gguf_baseline, sum_gguf_avx2;

}  // namespace khub::cpu
