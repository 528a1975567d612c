// Products of bytes by bytes of compute capability 9.0.
#pragma once

#include <cuda_fp8.h>

#include "hopper.h"

namespace khub::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define KHUB_SUMS(C, D, i) C(D[i]), C(D[i + 1]), C(D[i + 2]), C(D[i + 3])
#define KHUB_SUMS_16(C, D, i) KHUB_SUMS(C, D, i), KHUB_SUMS(C, D, i + 4), KHUB_SUMS(C, D, i + 8), KHUB_SUMS(C, D, i + 12)
#define KHUB_SUMS_64(C, D) KHUB_SUMS_16(C, D, 0), KHUB_SUMS_16(C, D, 16), KHUB_SUMS_16(C, D, 32), KHUB_SUMS_16(C, D, 48)
#define KHUB_SUM_REGISTERS                                                                              \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
  "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51," \
  "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
#define KHUB_FLOAT_SUM(x) "+f"(x)
#define KHUB_INT_SUM(x) "+r"(x)

// d = a b^T, plus d where `add`, for a [64, 32] and b [128, 32] of bytes; asked for by all of a warpgroup, there when
// `finish_products` returns. Lane 4 g + t of warp w holds rows 16 w + g and 8 further; of these two, columns 2 t and
// 2 t + 1 of each eight: d[4 j], d[4 j + 1] of columns 8 j and of the first row, d[4 j + 2], d[4 j + 3] of the second.
__device__ __forceinline__ void multiply_tile(float (&d)[64], uint64_t a, uint64_t b, bool add, __nv_fp8_e4m3*) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 " KHUB_SUM_REGISTERS ", %64, %65, p, 1, 1;\n"
      "}\n"
      : KHUB_SUMS_64(KHUB_FLOAT_SUM, d)
      : "l"(a), "l"(b), "r"(int(add)));
}

__device__ __forceinline__ void multiply_tile(int (&d)[64], uint64_t a, uint64_t b, bool add, int8_t*) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 " KHUB_SUM_REGISTERS ", %64, %65, p;\n"
      "}\n"
      : KHUB_SUMS_64(KHUB_INT_SUM, d)
      : "l"(a), "l"(b), "r"(int(add)));
}

#undef KHUB_SUMS
#undef KHUB_SUMS_16
#undef KHUB_SUMS_64
#undef KHUB_SUM_REGISTERS
#undef KHUB_FLOAT_SUM
#undef KHUB_INT_SUM

#elif !defined(__CUDACC__)

using cuda_emulator::multiply_tile;

#endif

}  // namespace khub::cuda
