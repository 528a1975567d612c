// Products with e4m3 weights for AVX2; more lanes would wait for the same memory.
#include <cstring>

#include "fp8_cpu.h"

#if defined(__x86_64__) && !defined(KHUB_BASELINE)  // which tests set to be given the other paths
#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c")
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

#define KHUB_LANES 8
#include "lanes.h"

static constexpr float kE4M3Unit = 256.0f;

// Eight numbers in kE4M3Unit: the bits of an e4m3 are those of a float16 whose exponent is 8 too small. With the sign
// extended and moved up, only bit 14 holds what is not its own.
KHUB_INLINE f32x8 widen_e4m3(const uint8_t* from) {
  const __m128i bytes = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  const __m128i halves = _mm_and_si128(_mm_slli_epi16(bytes, 7), _mm_set1_epi16(int16_t(0xbf80)));
  return bit_cast<f32x8>(_mm256_cvtph_ps(halves));
}

#include "fp8_impl.h"

}  // namespace

const SumFp8 sum_fp8_avx2 = sum_fp8;

}  // namespace khub::cpu

#else

namespace khub::cpu {

const SumFp8 sum_fp8_avx2 = nullptr;

}  // namespace khub::cpu

#endif
