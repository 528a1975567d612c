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
//
#include "panels_impl.h"

typedef int16_t i16x16 __attribute__((vector_size(32)));

// sums + a * b, where a lane takes two 16-bit products.
KHUB_INLINE i32x8 add_products(i32x8 sums, i16x16 a, i16x16 b) {
  return sums + bit_cast<i32x8>(_mm256_madd_epi16(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
}

#include "matmul_impl.h"

// Four bytes of x in each lane.
KHUB_INLINE __m256i word_at(const int8_t* x) {
  int32_t word;
  std::memcpy(&word, x, sizeof(word));
  return _mm256_set1_epi32(word);
}

// The products of nibbles and the bytes of x, of each digit apart. A step adds 8 of at most 15 * 128 to a lane, which
// 16 bits hold.
template <int kDigits>
struct DigitSums {
  __m256i digits[kDigits];

  // `low` times the first 32 bytes of each digit, `high` times the next.
  inline __attribute__((always_inline)) void add(u32x8 low, u32x8 high, const int8_t* x) {
#pragma GCC unroll 3
    for (int i = 0; i < kDigits; ++i) {
      const __m256i* at = reinterpret_cast<const __m256i*>(x + i * kNibbles);
      const __m256i first = _mm256_maddubs_epi16(bit_cast<__m256i>(low), _mm256_load_si256(at));
      const __m256i second = _mm256_maddubs_epi16(bit_cast<__m256i>(high), _mm256_load_si256(at + 1));
      digits[i] = _mm256_add_epi16(digits[i], _mm256_add_epi16(first, second));
    }
  }

  // `low` times four bytes of each digit, `high` times those 32 further, the same for each lane.
  inline __attribute__((always_inline)) void add_word(u32x8 low, u32x8 high, const int8_t* x) {
#pragma GCC unroll 3
    for (int i = 0; i < kDigits; ++i) {
      const __m256i first = _mm256_maddubs_epi16(bit_cast<__m256i>(low), word_at(x + i * kNibbles));
      const __m256i second = _mm256_maddubs_epi16(bit_cast<__m256i>(high), word_at(x + i * kNibbles + 32));
      digits[i] = _mm256_add_epi16(digits[i], _mm256_add_epi16(first, second));
      __asm__("" : "+x"(digits[i]));  // in this order: another has more at a time than there are registers
    }
  }

  // Put together again, two 16-bit lanes in each of 32.
  inline __attribute__((always_inline)) i32x8 total() const {
    if constexpr (kDigits == 1) return times(digits[0], 1);
    const i32x8 top = times(digits[kDigits - 1], 256), next = times(digits[(kDigits - 1) / 2], 1);
    if (kDigits == 2) return top + next;
    return ((top + next) << 8) + times(digits[0], 1);
  }

  static inline __attribute__((always_inline)) i32x8 times(__m256i pairs, int16_t factor) {
    return bit_cast<i32x8>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(factor)));
  }
};

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
