// The product, compiled for the baseline and, on x86-64, for AVX2 with FMA; the processor picks at run time.
#include <algorithm>
#include <memory>
#include <type_traits>
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
//
#include "blocks_impl.h"
}  // namespace avx2
#pragma GCC pop_options
#endif

template <class T>
void widen_row(const void* from, float* to, int64_t count) {
  const bool pairs = std::is_same_v<T, BFloat16>;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t place = pairs && k < count / kTurn * kTurn ? k / 16 * 16 + k % 2 * 8 + k % 16 / 2 : k;
    to[place] = to_float(static_cast<const T*>(from)[k]);
  }
}

#if defined(KHUB_AVX2)
bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("f16c");
  return has;
}
#endif

}  // namespace

void linear(const Linear& q, const WideRows& x, int64_t begin, int64_t end) {
#if defined(KHUB_AVX2)
  if (has_avx2()) return avx2::linear(q, x, begin, end);
#endif
  baseline::linear(q, x, begin, end);
}

void widen(DType dtype, const void* from, float* to, int64_t count) {
  switch (dtype) {
    case DType::f32: return widen_row<float>(from, to, count);
    case DType::f16: return widen_row<Half>(from, to, count);
    case DType::bf16: return widen_row<BFloat16>(from, to, count);
  }
}

#if defined(KHUB_AVX2)
bool takes_blocks(const Linear& q) { return q.m >= kManyRows && has_avx2(); }

void fill_stripes(const Linear& q, const Stripes& x, int64_t begin, int64_t end) {
  avx2::fill_stripes(q, x, begin, end);
}

void multiply_blocks(const Linear& q, const Stripes& x, int64_t begin, int64_t end) {
  avx2::multiply_blocks(q, x, begin, end);
}
#else  // too few registers, or torch has a good one
bool takes_blocks(const Linear&) { return false; }
void fill_stripes(const Linear&, const Stripes&, int64_t, int64_t) {}
void multiply_blocks(const Linear&, const Stripes&, int64_t, int64_t) {}
#endif

}  // namespace khub::cpu
