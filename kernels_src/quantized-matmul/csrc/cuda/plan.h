// How a product is cut into tiles and slices: what the kernels of tensor cores share.
#pragma once

#include "matmul_cuda.h"

namespace khub::cuda {

struct Plan {
  float* partials;  // [slices, m, n]; null: a block walks all slices
  int slice;        // channels
  int fold;         // that are summed before they are scaled: 128, or a smaller group
  int group_shift;  // k >> group_shift is k's group
  int column_blocks;
  const void* x;            // as it is multiplied
  int64_t x_stride;         // bytes
  const float* x_scales;    // of what was rounded: [m, x_groups]
  int64_t x_groups;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of products of bytes by bytes on sm_90a (matmul_wgmma.cu). `x` is rounded already, its rows on 16 bytes.
constexpr int64_t kWgmmaColumns = 128;
inline int64_t wgmma_rows(int64_t m) { return m <= 64 ? 64 : 128; }
bool fits_wgmma(const QuantizedMatmul& q);  // on the current device
const char* multiply_wgmma(const QuantizedMatmul& q, const Plan& plan, void* stream);

}  // namespace khub::cuda
