// How a product is cut into tiles and slices, and how its sums leave: what the kernels of tensor cores share.
#pragma once

#include "device.h"
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

// Element (row, column) of the output from its sum.
template <class T>
__device__ __forceinline__ void write_as(const QuantizedMatmul& q, int64_t row, int64_t column, float sum) {
  const float bias = q.bias ? to_float(static_cast<const T*>(q.bias)[column]) : 0.0f;
  from_float(sum + bias, static_cast<T*>(q.out) + row * q.out_stride + column);
}

// Where X is what x was rounded to, the output's type is known when the kernel runs.
template <class X>
__device__ __forceinline__ void write(const QuantizedMatmul& q, int64_t row, int64_t column, float sum) {
  if constexpr (sizeof(X) == 2) {
    write_as<X>(q, row, column, sum);
  } else {
    switch (q.dtype) {
      case DType::f32: return write_as<float>(q, row, column, sum);
      case DType::f16: return write_as<__half>(q, row, column, sum);
      case DType::bf16: return write_as<__nv_bfloat16>(q, row, column, sum);
    }
  }
}

// Of products of bytes by bytes on sm_90a (matmul_wgmma.cu). `x` is rounded already, its rows on 16 bytes.
constexpr int64_t kWgmmaColumns = 128;
inline int64_t wgmma_rows(int64_t m) { return m <= 64 ? 64 : 128; }
bool has_wgmma();  // the current device
const char* multiply_wgmma(const QuantizedMatmul& q, const Plan& plan, void* stream);

}  // namespace khub::cuda
