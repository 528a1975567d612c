// Products of half precision of compute capability 9.0, whose rows are in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "hopper.h"

namespace khub::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define KHUB_SUMS(D, n) "+f"(D[n][0]), "+f"(D[n][1]), "+f"(D[n][2]), "+f"(D[n][3])
#define KHUB_SUMS_16(D, n) KHUB_SUMS(D, n), KHUB_SUMS(D, n + 1), KHUB_SUMS(D, n + 2), KHUB_SUMS(D, n + 3)
#define KHUB_SUMS_32(D, n) KHUB_SUMS_16(D, n), KHUB_SUMS_16(D, n + 4)
#define KHUB_REGISTERS_32                                                                               \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
  "%27,%28,%29,%30,%31"
#define KHUB_REGISTERS_64                                                                              \
  KHUB_REGISTERS_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51," \
                    "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// d = a b, plus d where `add`, for a [64, 16] in registers and b [16, 64] or [16, 128] in shared memory: an operand, or one
// across where kAcross is 1. Asked for by all of a warpgroup, there when `finish_products` returns; until then a is not
// to change. Lane 4 g + t of warp w holds rows 16 w + g and 8 further; of both, of each 8 columns, those of d[n] and of a
// which `mma` of ptx.h gives it.
#define KHUB_MULTIPLY(T, TYPE)                                                                                          \
  template <int kAcross>                                                                                                \
  __device__ __forceinline__ void multiply_rows(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, bool add, T*) {   \
    asm volatile(                                                                                                       \
        "{\n"                                                                                                           \
        ".reg .pred p;\n"                                                                                               \
        "setp.ne.b32 p, %37, 0;\n"                                                                                      \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" KHUB_REGISTERS_32                              \
        "}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n"                                                                    \
        "}\n"                                                                                                           \
        : KHUB_SUMS_32(d, 0)                                                                                            \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(kAcross));                             \
  }                                                                                                                     \
  template <int kAcross>                                                                                                \
  __device__ __forceinline__ void multiply_rows(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b, bool add, T*) {  \
    asm volatile(                                                                                                       \
        "{\n"                                                                                                           \
        ".reg .pred p;\n"                                                                                               \
        "setp.ne.b32 p, %69, 0;\n"                                                                                      \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" KHUB_REGISTERS_64                             \
        "}, {%64,%65,%66,%67}, %68, p, 1, 1, %70;\n"                                                                    \
        "}\n"                                                                                                           \
        : KHUB_SUMS_32(d, 0), KHUB_SUMS_32(d, 8)                                                                        \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(kAcross));                             \
  }

KHUB_MULTIPLY(__half, "f16")
KHUB_MULTIPLY(__nv_bfloat16, "bf16")

#undef KHUB_MULTIPLY
#undef KHUB_REGISTERS_64
#undef KHUB_REGISTERS_32
#undef KHUB_SUMS_32
#undef KHUB_SUMS_16
#undef KHUB_SUMS

#elif !defined(__CUDACC__)

template <int kAcross, class T, int kEights, class Operand>
void multiply_rows(float (&d)[kEights][4], const uint32_t (&a)[4], Operand b, bool add, T* type) {
  static_assert(kAcross == int(std::is_same<Operand, cuda_emulator::Across>::value), "what the operand is");
  cuda_emulator::multiply_rows(d, a, b, add, type);
}

#endif

}  // namespace khub::cuda
