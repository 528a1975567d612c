// Products with GGUF's blocks for AVX2; more lanes would wait for the same memory.
#include <cstring>

#include "gguf_cpu.h"

#if defined(__x86_64__) && !defined(KHUB_BASELINE)  // which tests set to be given the other paths
#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c")
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

#define KHUB_LANES 8
#define KHUB_F16C
#include "lanes.h"

// The lowest byte first.
KHUB_INLINE i32x8 widen_bytes(uint64_t bytes) {
  return bit_cast<i32x8>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(bytes))));
}

#include "gguf_impl.h"

}  // namespace

const SumGguf sum_gguf_avx2 = sum_gguf;

}  // namespace khub::cpu

#else

namespace khub::cpu {

const SumGguf sum_gguf_avx2 = nullptr;

}  // namespace khub::cpu

#endif
