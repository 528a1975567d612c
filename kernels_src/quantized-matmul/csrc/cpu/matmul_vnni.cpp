// The integer products for AVX-512 VNNI on 256 bits.
// No machine that this project has been run on has it: its instructions have been run by the tests' emulator only.
#include <cmath>
#include <cstring>

#include "blocks.h"
#include "matmul_cpu.h"

#if defined(__x86_64__) && !defined(KHUB_BASELINE)  // which tests set to be given the other paths
#include <immintrin.h>

#if defined(KHUB_EMULATE_AMX)
#include <emulated_amx.h>
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512vnni,avx2,fma,f16c")
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
KHUB_INLINE i32x8 add_products(i32x8 sums, i16x16 a, i16x16 b) {
  return bit_cast<i32x8>(
      _mm256_dpwssd_epi32(bit_cast<__m256i>(sums), bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
}

#include "matmul_impl.h"

// Four bytes of x in each lane.
KHUB_INLINE __m256i word_at(const int8_t* x) {
  int32_t word;
  std::memcpy(&word, x, sizeof(word));
  return _mm256_set1_epi32(word);
}

// The products of nibbles and the bytes of x, of each digit apart.
template <int kDigits>
struct DigitSums {
  __m256i digits[kDigits];

  // `low` times the first 32 bytes of each digit, `high` times the next.
  inline __attribute__((always_inline)) void add(u32x8 low, u32x8 high, const int8_t* x) {
#pragma GCC unroll 3
    for (int i = 0; i < kDigits; ++i) {
      const __m256i* at = reinterpret_cast<const __m256i*>(x + i * kNibbles);
      digits[i] = _mm256_dpbusd_epi32(digits[i], bit_cast<__m256i>(low), _mm256_load_si256(at));
      digits[i] = _mm256_dpbusd_epi32(digits[i], bit_cast<__m256i>(high), _mm256_load_si256(at + 1));
    }
  }

  // `low` times four bytes of each digit, `high` times those 32 further, the same for each lane.
  inline __attribute__((always_inline)) void add_word(u32x8 low, u32x8 high, const int8_t* x) {
#pragma GCC unroll 3
    for (int i = 0; i < kDigits; ++i) {
      digits[i] = _mm256_dpbusd_epi32(digits[i], bit_cast<__m256i>(low), word_at(x + i * kNibbles));
      digits[i] = _mm256_dpbusd_epi32(digits[i], bit_cast<__m256i>(high), word_at(x + i * kNibbles + 32));
    }
  }

  // Put together again.
  inline __attribute__((always_inline)) i32x8 total() const {
    i32x8 sum = bit_cast<i32x8>(digits[kDigits - 1]);
#pragma GCC unroll 3
    for (int i = kDigits - 2; i >= 0; --i) sum = (sum << 8) + bit_cast<i32x8>(digits[i]);
    return sum;
  }
};

#include "nibbles_impl.h"
//
#include "blocks_impl.h"

}  // namespace

const Loops loops_vnni = {sum_tile, sum_nibbles_tile, fill_bytes};
const MultiplyBlock multiply_block_vnni = multiply_block;

}  // namespace khub::cpu

#else

namespace khub::cpu {

const Loops loops_vnni = {nullptr, nullptr, nullptr};
const MultiplyBlock multiply_block_vnni = nullptr;

}  // namespace khub::cpu

#endif
