// x as floats, the sums as x's own type, and which instruction set does the work between.
#include "fp8_cpu.h"

#include <algorithm>

#include "matmul_cpu.h"

namespace khub::cpu {

namespace {

SumFp8 pick() { return processor() == Processor::baseline ? sum_fp8_baseline : sum_fp8_avx2; }

template <class T>
void widen(const QuantizedMatmul& q, const WideRows& x, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    const T* from = static_cast<const T*>(q.x) + (x.first + m) * q.x_stride;
    float* to = x.values + m * x.stride;
    for (int64_t k = 0; k < q.k; ++k) to[k] = to_float(from[k]);
    std::fill(to + q.k, to + x.stride, 0.0f);
  }
}

template <class T>
void write(const QuantizedMatmul& q, const float* sums, int64_t row, int64_t rows, int64_t first) {
  const int64_t count = std::min(kFp8Tile, q.n - first);
  for (int64_t m = 0; m < rows; ++m) {
    T* out = static_cast<T*>(q.out) + (row + m) * q.out_stride + first;
    for (int64_t n = 0; n < count; ++n) {
      const float bias = q.bias ? to_float(static_cast<const T*>(q.bias)[first + n]) : 0.0f;
      from_float(sums[m * kFp8Tile + n] + bias, out + n);
    }
  }
}

}  // namespace

void widen_x(const QuantizedMatmul& q, const WideRows& x, int64_t begin, int64_t end) {
  switch (q.dtype) {
    case DType::f32: return widen<float>(q, x, begin, end);
    case DType::f16: return widen<Half>(q, x, begin, end);
    case DType::bf16: return widen<BFloat16>(q, x, begin, end);
  }
}

void multiply_fp8(const QuantizedMatmul& q, const WideRows& x, int64_t begin, int64_t end) {
  static const SumFp8 sum_fp8 = pick();
  float sums[kFp8Rows * kFp8Tile];
  for (int64_t n = begin; n < end; n += kFp8Tile) {
    for (int64_t m = 0; m < x.rows; m += kFp8Rows) {
      const int64_t rows = std::min(kFp8Rows, x.rows - m), row = x.first + m;
      sum_fp8(q, x.values + m * x.stride, x.stride, rows, n, sums);
      switch (q.dtype) {
        case DType::f32: write<float>(q, sums, row, rows, n); break;
        case DType::f16: write<Half>(q, sums, row, rows, n); break;
        case DType::bf16: write<BFloat16>(q, sums, row, rows, n); break;
      }
    }
  }
}

}  // namespace khub::cpu
