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
//
#include "blocks_impl.h"

}  // namespace

const SumTile sum_tile_avx2 = sum_tile;
const MultiplyBlock multiply_block_avx2 = multiply_block;

}  // namespace khub::cpu

#else

namespace khub::cpu {

const SumTile sum_tile_avx2 = nullptr;
const MultiplyBlock multiply_block_avx2 = nullptr;

}  // namespace khub::cpu

#endif
