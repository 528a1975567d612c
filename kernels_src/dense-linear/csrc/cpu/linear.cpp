// The product, compiled for the baseline and, on x86-64, for AVX2 with FMA; the processor picks at run time.
#include <algorithm>
#include <vector>

#include "linear_cpu.h"

#if defined(__x86_64__) && !defined(KHUB_BASELINE)
#define KHUB_AVX2  // -DKHUB_BASELINE leaves it out, to test the other path on a machine that has it
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

#define KHUB_LANES 8

namespace khub::cpu {

namespace {

namespace baseline {
#include "lanes.h"
//
#include "linear_impl.h"
}  // namespace baseline

#if defined(KHUB_AVX2)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define KHUB_F16C
namespace avx2 {
#include "lanes.h"
//
#include "linear_impl.h"
}  // namespace avx2
#pragma GCC pop_options
#endif

template <class T>
void widen_row(const void* from, float* to, int64_t count) {
  for (int64_t k = 0; k < count; ++k) to[k] = to_float(static_cast<const T*>(from)[k]);
}

}  // namespace

void linear(const Linear& q, int64_t begin, int64_t end) {
#if defined(KHUB_AVX2)
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                               __builtin_cpu_supports("f16c");
  if (has_avx2) return avx2::linear(q, begin, end);
#endif
  baseline::linear(q, begin, end);
}

void widen(DType dtype, const void* from, float* to, int64_t count) {
  switch (dtype) {
    case DType::f32: return widen_row<float>(from, to, count);
    case DType::f16: return widen_row<Half>(from, to, count);
    case DType::bf16: return widen_row<BFloat16>(from, to, count);
  }
}

}  // namespace khub::cpu
