// The product, compiled for the baseline and, on x86-64, for AVX2 with FMA; the processor picks at run time.
#include <algorithm>
#include <vector>

#include "matmul_cpu.h"

#if defined(__x86_64__) && !defined(KHUB_BASELINE)
#define KHUB_AVX2  // -DKHUB_BASELINE leaves it out, to test the other path on a machine that has it
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

namespace baseline {
#include "lanes.h"
//
#include "matmul_impl.h"
}  // namespace baseline

#if defined(KHUB_AVX2)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "lanes.h"
//
#include "matmul_impl.h"
}  // namespace avx2
#pragma GCC pop_options
#endif

template <class T>
void widen_rows(const QuantizedMatmul& q, float* widened, int64_t begin, int64_t end) {
  const int64_t width = widened_width(q), unit = weights_per_unpack(q), per_word = unit / 8;
  for (int64_t m = begin; m < end; ++m) {
    const T* from = static_cast<const T*>(q.x) + m * q.x_stride;
    float* to = widened + m * width;
    std::fill(to, to + width, 0.0f);
    for (int64_t k = 0; k < q.k; ++k) {  // element i of word l goes to lane l of vector i
      const int64_t start = k / unit * unit, i = k % per_word, l = k % unit / per_word;
      to[start + 8 * i + l] = to_float(from[k]);
    }
  }
}

}  // namespace

void widen(const QuantizedMatmul& q, float* widened, int64_t begin, int64_t end) {
  switch (q.dtype) {
    case DType::f32: return widen_rows<float>(q, widened, begin, end);
    case DType::f16: return widen_rows<Half>(q, widened, begin, end);
    case DType::bf16: return widen_rows<BFloat16>(q, widened, begin, end);
  }
}

void matmul(const QuantizedMatmul& q, const float* widened, int64_t begin, int64_t end) {
#if defined(KHUB_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return avx2::matmul(q, widened, begin, end);
#endif
  baseline::matmul(q, widened, begin, end);
}

}  // namespace khub::cpu
