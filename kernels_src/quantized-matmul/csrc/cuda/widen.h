// Weights of 4 and 8 bits as pairs of half-precision numbers, in registers and exactly.
//
// Under the exponent of 2^n, whole numbers that are less lie in the lowest bits of the mantissa as they are: putting
// them there makes 2^n + value, and one instruction for two of them takes 2^n away again, a zero point with it.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

#include "ptx.h"

namespace khub::cuda {

// a * b + c of two pairs each, rounded once.
#if defined(__CUDACC__)
__device__ __forceinline__ uint32_t fma_pairs(uint32_t a, uint32_t b, uint32_t c, __half*) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;\n" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

__device__ __forceinline__ uint32_t fma_pairs(uint32_t a, uint32_t b, uint32_t c, __nv_bfloat16*) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
#else
template <class T>
uint32_t fma_pairs(uint32_t a, uint32_t b, uint32_t c, T* type) {
  return cuda_emulator::fma_pairs(a, b, c, type);
}
#endif

// What widening adds to 2^n + value for value - zero; zero at most 128, as no 4-bit format has more than 16.
__device__ __forceinline__ uint32_t minus_zero(uint32_t zero, __half*) { return 0xe400e400u + zero * 0x10001u; }
__device__ __forceinline__ uint32_t minus_zero(uint32_t zero, __nv_bfloat16*) { return 0xc300c300u + zero * 0x10001u; }

// Nibbles i and i + 4 of a word.
__device__ __forceinline__ void widen_nibbles(uint32_t word, uint32_t minus, uint32_t (&to)[4], __half* type) {
  // Four bits further up the same exponent makes 2^10 + 16 * value, and a multiplication is free.
  const uint32_t one = 0x3c003c00u, sixteenth = 0x2c002c00u;
  const uint32_t minus_high = fma_pairs(minus, one, 0x63806380u, type);  // + 960: -64 in place of -1024
  to[0] = fma_pairs((word & 0x000f000fu) | 0x64006400u, one, minus, type);
  to[1] = fma_pairs((word & 0x00f000f0u) | 0x64006400u, sixteenth, minus_high, type);
  word >>= 8;
  to[2] = fma_pairs((word & 0x000f000fu) | 0x64006400u, one, minus, type);
  to[3] = fma_pairs((word & 0x00f000f0u) | 0x64006400u, sixteenth, minus_high, type);
}

__device__ __forceinline__ void widen_nibbles(uint32_t word, uint32_t minus, uint32_t (&to)[4], __nv_bfloat16* type) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[i] = fma_pairs((word >> (4 * i) & 0x000f000fu) | 0x43004300u, 0x3f803f80u, minus, type);
  }
}

// Signed bytes 0 and 1 of a word, then 2 and 3.
__device__ __forceinline__ void widen_bytes(uint32_t word, uint32_t* to, __half* type) {
  const uint32_t biased = word ^ 0x80808080u;  // value + 128
  to[0] = fma_pairs(__byte_perm(biased, 0x64646464u, 0x4140), 0x3c003c00u, 0xe480e480u, type);
  to[1] = fma_pairs(__byte_perm(biased, 0x64646464u, 0x4342), 0x3c003c00u, 0xe480e480u, type);
}

// A mantissa of 7 bits: the sign bit, which stands for -128, chooses between taking away 128 and 256.
__device__ __forceinline__ void widen_bytes(uint32_t word, uint32_t* to, __nv_bfloat16* type) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t bytes = __byte_perm(word, 0, i ? 0x4342 : 0x4140);
    to[i] = fma_pairs((bytes & 0x007f007fu) | 0x43004300u, 0x3f803f80u, (bytes & 0x00800080u) | 0xc300c300u, type);
  }
}

// e4m3 numbers 0 and 1 of a word, then 2 and 3: under the exponents of the wider type they are too small by a power of
// two, subnormal ones too.
__device__ __forceinline__ void widen_e4m3(uint32_t word, uint32_t* to, __half* type) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t bytes = __byte_perm(word, 0, i ? 0x3424 : 0x1404);  // in the upper halves
    const uint32_t small = (bytes & 0x80008000u) | (bytes >> 1 & 0x3f803f80u);
    to[i] = fma_pairs(small, 0x5c005c00u, 0, type);  // 2^8
  }
}

__device__ __forceinline__ void widen_e4m3(uint32_t word, uint32_t* to, __nv_bfloat16* type) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t bytes = __byte_perm(word, 0, i ? 0x3424 : 0x1404);
    const uint32_t small = (bytes & 0x80008000u) | (bytes >> 4 & 0x07f007f0u);
    to[i] = fma_pairs(small, 0x7b807b80u, 0, type);  // 2^120
  }
}

// As the products of bytes in ptx.h, for e4m3; where tensor cores do not have those, as two products of what is wider.
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_fp8_e4m3*) {
#if !defined(__CUDACC__)
  cuda_emulator::mma<__nv_fp8_e4m3>(d, a, {b0, b1});
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __half* const type = nullptr;
  // Of each word the first two elements are a row of one product, the last two of the next; in a and b alike.
  uint32_t wide[4][2], b[2][2];
  for (int i = 0; i < 4; ++i) widen_e4m3(a[i], wide[i], type);
  widen_e4m3(b0, b[0], type);
  widen_e4m3(b1, b[1], type);
  for (int half = 0; half < 2; ++half) {
    const uint32_t part[4] = {wide[0][half], wide[1][half], wide[2][half], wide[3][half]};
    mma(d, part, b[0][half], b[1][half], type);
  }
#endif
}

}  // namespace khub::cuda
