// What compute capability 9.0 has of its own: copies of tiles that land on a barrier (TMA), and products of four warps
// whose operands lie in shared memory (wgmma), as functions. Compiled for the host, by the tests' emulator, they are
// the emulator's. Source: the PTX manual, "Asynchronous Warpgroup Level Matrix Instructions" and "Tensor copies".
#pragma once

#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

#include "device.h"

#if defined(__CUDACC__)
#include <cuda.h>
#include <cudaTypedefs.h>
#else
#include <emulated_hopper.h>
#endif

namespace khub::cuda {

constexpr int kWarpgroup = 128;  // threads
constexpr int kSwizzled = 128;   // bytes of a tile's row, whose 16-byte pieces are spread over all banks
constexpr int kTileAlign = 1024;

#if defined(__CUDACC__)

// Where the tiles of a matrix of bytes come from. A kernel takes it as `const __grid_constant__ TileMap`.
struct TileMap {
  CUtensorMap map;
};

// The driver's function that makes them, looked up once; null where there is none.
inline PFN_cuTensorMapEncodeTiled_v12000 tile_map_encoder() {
  static const PFN_cuTensorMapEncodeTiled_v12000 encoder = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
    const bool is_there = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(is_there ? entry : nullptr);
  }();
  return encoder;
}

// Tiles of `tile_rows` x 128 bytes of a [rows, bytes] matrix whose rows are `stride` bytes apart; zeros past its ends.
// The matrix and its rows are on 16 bytes. Null, or what went wrong.
inline const char* make_tile_map(const void* data, int64_t rows, int64_t bytes, int64_t stride, int tile_rows,
                                 TileMap* to) {
  const PFN_cuTensorMapEncodeTiled_v12000 encode = tile_map_encoder();
  if (!encode) return "this driver has no cuTensorMapEncodeTiled";
  const cuuint64_t sizes[2] = {cuuint64_t(bytes), cuuint64_t(rows)}, strides[1] = {cuuint64_t(stride)};
  const cuuint32_t tile[2] = {kSwizzled, cuuint32_t(tile_rows)}, steps[2] = {1, 1};
  const CUresult result = encode(
      &to->map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(data), sizes, strides, tile, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refused the matrix";
}

// The block's dynamic shared memory.
__device__ __forceinline__ uint8_t* dynamic_shared() {
  extern __shared__ uint8_t khub_dynamic_shared[];
  return khub_dynamic_shared;
}

template <class... Params>
cudaError_t allow_shared(void (*kernel)(Params...), int bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define KHUB_WGMMA 1

// A barrier in shared memory. A phase of it ends with so many arrivals and all bytes that were announced.
struct Landing {
  uint64_t state;

  __device__ __forceinline__ uint32_t address() const { return uint32_t(__cvta_generic_to_shared(&state)); }

  __device__ __forceinline__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" : : "r"(address()), "r"(arrivals) : "memory");
  }

  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" : : "r"(address()) : "memory");
  }

  // Arrives, and announces so many bytes.
  __device__ __forceinline__ void expect(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" : : "r"(address()), "r"(bytes) : "memory");
  }

  // Until the phase of this parity has ended; of a new barrier, that of parity 1 has.
  __device__ __forceinline__ void wait(uint32_t parity) {
    uint32_t ended = 0;
    while (!ended) {
      asm volatile(
          "{\n"
          ".reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n"
          "}\n"
          : "=r"(ended)
          : "r"(address()), "r"(parity)
          : "memory");
    }
  }
};

// After `init`, before other threads and the copies see the barriers; a barrier of the block follows.
__device__ __forceinline__ void publish_landings() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }

// The tile at (byte, row) to shared memory, on kTileAlign.
__device__ __forceinline__ void copy_tile(void* shared, const TileMap& from, int byte, int row, Landing& landing) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n"
      :
      : "r"(uint32_t(__cvta_generic_to_shared(shared))), "l"(&from.map), "r"(byte), "r"(row), "r"(landing.address())
      : "memory");
}

// Of the threads of a warpgroup: registers given back, or taken from what others gave back.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" : : "n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" : : "n"(kRegisters));
}

// Rows of a tile as an operand: swizzled rows of 128 bytes (bits 62 and 63: 1), eight of them every 1024 bytes (bits 32
// to 45, in 16 bytes). `from` is the first row plus the bytes of k already done.
__device__ __forceinline__ uint64_t operand(const uint8_t* from) {
  const uint64_t address = uint64_t(__cvta_generic_to_shared(from)) >> 4 & 0x3fff;
  return address | uint64_t(1) << 16 | uint64_t(kTileAlign >> 4) << 32 | uint64_t(1) << 62;
}

// Before the first product, and after registers of its sums were touched by others than products.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

// Until all are done: their sums can be read, their operands be overwritten.
template <class Sum>
__device__ __forceinline__ void finish_products(Sum (&sums)[64]) {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
  // So that no read of them is moved before the wait.
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    if constexpr (std::is_same<Sum, float>::value) {
      asm volatile("" : "+f"(sums[i])::"memory");
    } else {
      asm volatile("" : "+r"(sums[i])::"memory");
    }
  }
}

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

#endif

#else

#define KHUB_WGMMA 1

using cuda_emulator::allow_shared;
using cuda_emulator::begin_products;
using cuda_emulator::copy_tile;
using cuda_emulator::dynamic_shared;
using cuda_emulator::finish_products;
using cuda_emulator::give_registers;
using cuda_emulator::Landing;
using cuda_emulator::make_tile_map;
using cuda_emulator::multiply_tile;
using cuda_emulator::operand;
using cuda_emulator::publish_landings;
using cuda_emulator::take_registers;
using cuda_emulator::TileMap;

#endif

}  // namespace khub::cuda
