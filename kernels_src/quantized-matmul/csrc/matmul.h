// What the kernels are told: raw pointers, sizes and strides (in elements), already checked by the binding.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace khub {

// out[m, n] = sum over k of x[m, k] * (weight[n, k] - zero) * scale, plus bias[n]. A scale, and a zero point,
// holds for `group_size` consecutive k of one n.
struct QuantizedMatmul {
  DType dtype;  // of x, bias and out
  int64_t m;
  int64_t n;
  int64_t k;
  const void* x;
  int64_t x_stride;
  void* out;
  int64_t out_stride;
  const void* bias;  // [n], or null
  int bits;          // 8: int8 or e4m3 [n, k]; 4: two to a byte, [n, ceil(k / 2)], the even k in the low half
  bool e4m3;         // with 8 bits: FP8 of 4 bits of exponent and 3 of mantissa
  const uint8_t* weight;
  int64_t row_bytes;
  const void* scales;  // [ceil(n / scale_rows), groups]
  int64_t scale_rows;  // consecutive n that share scales: 1, or 128 with e4m3
  DType scale_dtype;
  const uint8_t* zeros;  // [n, groups]; null: 0 with 8 bits, 8 with 4
  int64_t group_size;    // with 4 bits: k, or a power of two from 32 to 512; with e4m3: k or 128, the last may be less
  int64_t groups;
  bool panels;  // weight, scales and zeros are in panels of 8 n: [ceil(n / 8), k / 8, 8, 4 bytes], [ceil(n / 8), groups, 8]
  bool coarse;  // x may be rounded to 8 bits, by row and group: whole numbers, or e4m3 where the weights are
};

}  // namespace khub
