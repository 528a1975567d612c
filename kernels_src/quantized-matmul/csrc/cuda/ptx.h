// Tensor-core products, their loads and asynchronous copies, of compute capability 8.0 and later, as functions.
// Compiled for the host, by the tests' emulator, they are the emulator's.
#pragma once

#include <cstdint>

#include "device.h"

#if !defined(__CUDACC__)
#include <emulated_ptx.h>
#endif

namespace khub::cuda {

#if defined(__CUDACC__)

// d += a b for a [16, 16], b [16, 8]. Lane 4 g + t holds, of d, columns 2 t and 2 t + 1 of row g, then of row g + 8; of
// a, words of two elements: row g, row g + 8, and both again 8 columns on; of b, column g: rows 2 t, 2 t + 1, and 8 on.
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half*) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    __nv_bfloat16*) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same for bytes, a [16, 32] and b [32, 8]: words of four elements; rows and columns of a and b 16 on, not 8.
__device__ __forceinline__ void mma(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int8_t*) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 by 8 16-bit elements in shared memory: lane 8 m + i gives the address of row i of matrix m. Lane
// 4 g + t gets elements (g, 2 t) and (g, 2 t + 1) of each matrix, or of its transpose.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
}

// 16 aligned bytes to shared memory, or zeros; there once the group it is committed with has been waited for.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
               :
               : "r"(uint32_t(__cvta_generic_to_shared(shared))), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Until all of this thread's groups but the last kPending are there.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" : : "n"(kPending) : "memory");
}

#else

template <class T, class Sum>
void mma(Sum (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T*) {
  cuda_emulator::mma<T>(d, a, {b0, b1});
}

template <bool kTransposed>
void load_matrices(uint32_t (&to)[4], const void* row) {
  cuda_emulator::load_matrices<kTransposed>(to, row);
}

inline void copy_async(void* shared, const void* global, bool valid) {
  cuda_emulator::copy_async(shared, global, valid);
}

inline void commit_copies() { cuda_emulator::commit_copies(); }

template <int kPending>
void wait_copies() {
  cuda_emulator::wait_copies(kPending);
}

#endif

}  // namespace khub::cuda
