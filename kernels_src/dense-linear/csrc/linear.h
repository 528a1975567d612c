// What the kernel is told: raw pointers, sizes and strides (in elements), already checked by the binding.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace khub {

// out[m, n] = sum over k of x[m, k] * weight[n, k], plus bias[n].
struct Linear {
  DType dtype;  // of all tensors
  int64_t m;
  int64_t n;
  int64_t k;
  const void* x;
  int64_t x_stride;
  const void* weight;
  int64_t weight_stride;
  const void* bias;  // [n], or null
  void* out;
  int64_t out_stride;
};

}  // namespace khub
