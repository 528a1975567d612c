// x as floats, the sums as x's own type, and which instruction set does the work between.
#include <algorithm>

#include "gguf_cpu.h"
#include "matmul_cpu.h"

namespace khub::cpu {

namespace {

SumGguf pick() { return processor() == Processor::baseline ? sum_gguf_baseline : sum_gguf_avx2; }

template <class T>
void widen(const GgufMatmul& q, int64_t first, int64_t begin, int64_t end, float* to) {
  for (int64_t m = begin; m < end; ++m) {
    const T* from = static_cast<const T*>(q.x) + (first + m) * q.x_stride;
    for (int64_t k = 0; k < q.k; ++k) to[m * q.k + k] = to_float(from[k]);
  }
}

template <class T>
void write(const GgufMatmul& q, const float* sums, int64_t row, int64_t rows, int64_t first, int64_t count) {
  for (int64_t m = 0; m < rows; ++m) {
    T* out = static_cast<T*>(q.out) + (row + m) * q.out_stride + first;
    for (int64_t n = 0; n < count; ++n) {
      const float bias = q.bias ? to_float(static_cast<const T*>(q.bias)[first + n]) : 0.0f;
      from_float(sums[m * kGgufTile + n] + bias, out + n);
    }
  }
}

}  // namespace

void widen_rows(const GgufMatmul& q, int64_t first, int64_t begin, int64_t end, float* to) {
  q.dtype == DType::f16 ? widen<Half>(q, first, begin, end, to) : widen<BFloat16>(q, first, begin, end, to);
}

void multiply_gguf(const GgufMatmul& q, const FloatRows& x, int64_t begin, int64_t end) {
  static const SumGguf sum_gguf = pick();
  float sums[kGgufRows * kGgufTile];
  for (int64_t n = begin; n < end; n += kGgufTile) {
    const int64_t count = std::min(kGgufTile, end - n);
    for (int64_t m = 0; m < x.rows; m += kGgufRows) {
      const int64_t rows = std::min(kGgufRows, x.rows - m), row = x.first + m;
      sum_gguf(q, x.values + m * x.stride, x.stride, rows, n, count, sums);
      switch (q.dtype) {
        case DType::f32: write<float>(q, sums, row, rows, n, count); break;
        case DType::f16: write<Half>(q, sums, row, rows, n, count); break;
        case DType::bf16: write<BFloat16>(q, sums, row, rows, n, count); break;
      }
    }
  }
}

}  // namespace khub::cpu
