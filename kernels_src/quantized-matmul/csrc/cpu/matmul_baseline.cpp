// The integer products for the instruction set every processor of the architecture has.
#include <cmath>
#include <cstring>

#include "matmul_cpu.h"
#if defined(__x86_64__)
#include <emmintrin.h>
#endif
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

#define KHUB_LANES 8
#include "lanes.h"
//
#include "panels_impl.h"

typedef int16_t i16x16 __attribute__((vector_size(32)));

// sums + a * b, where a lane takes two 16-bit products.
#if defined(__x86_64__)
struct Halves {
  __m128i low, high;
};

KHUB_INLINE i32x8 add_products(i32x8 sums, i16x16 a, i16x16 b) {
  const Halves x = bit_cast<Halves>(a), y = bit_cast<Halves>(b);
  return sums + bit_cast<i32x8>(Halves{_mm_madd_epi16(x.low, y.low), _mm_madd_epi16(x.high, y.high)});
}
#else
KHUB_INLINE i32x8 add_products(i32x8 sums, i16x16 a, i16x16 b) {
  const i32x8 x = bit_cast<i32x8>(a), y = bit_cast<i32x8>(b);
  return sums + ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
}
#endif

#include "matmul_impl.h"

}  // namespace

const Loops loops_baseline = {sum_tile, nullptr, nullptr};

}  // namespace khub::cpu
