// The integer products for AVX2.
#include <cmath>
#include <cstring>

#include "blocks.h"
#include "matmul_cpu.h"

#if defined(__x86_64__) && !defined(KHUB_BASELINE)  // which tests set to be given the other paths
#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c")
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

#define KHUB_LANES 8
#include "lanes.h"

typedef int16_t i16x16 __attribute__((vector_size(32)));

// sums + a * b, where a lane takes two 16-bit products.
KHUB_INLINE i32x8 add_products(i32x8 sums, i16x16 a, i16x16 b) {
  return sums + bit_cast<i32x8>(_mm256_madd_epi16(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
}

#include "matmul_impl.h"

// Of one digit: for 16 lanes 4 nibbles times its bytes, which takes 14 of 16 bits.
KHUB_INLINE __m256i digit_products(u32x8 low, u32x8 high, const int8_t* digit) {
  const __m256i* at = reinterpret_cast<const __m256i*>(digit);
  return _mm256_add_epi16(_mm256_maddubs_epi16(bit_cast<__m256i>(low), _mm256_load_si256(at)),
                          _mm256_maddubs_epi16(bit_cast<__m256i>(high), _mm256_load_si256(at + 1)));
}

KHUB_INLINE i32x8 times(__m256i pairs, int16_t factor) {
  return bit_cast<i32x8>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(factor)));
}

// For each lane 8 nibbles times values of x: `low` times the first 32 bytes of each digit, `high` times the next.
KHUB_INLINE i32x8 unit_products(u32x8 low, u32x8 high, const int8_t* x) {
  const i32x8 top = times(digit_products(low, high, x + 2 * kNibbles), 256);
  const i32x8 middle = times(digit_products(low, high, x + kNibbles), 1);
  return ((top + middle) << 8) + times(digit_products(low, high, x), 1);
}

#include "nibbles_impl.h"
//
#include "blocks_impl.h"

}  // namespace

const Loops loops_avx2 = {sum_tile, sum_nibbles_tile, fill_bytes};
const MultiplyBlock multiply_block_avx2 = multiply_block;

}  // namespace khub::cpu

#else

namespace khub::cpu {

const Loops loops_avx2 = {nullptr, nullptr, nullptr};
const MultiplyBlock multiply_block_avx2 = nullptr;

}  // namespace khub::cpu

#endif
