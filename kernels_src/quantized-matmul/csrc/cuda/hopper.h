// What compute capability 9.0 has of its own: copies of tiles that land on a barrier (TMA), and products of four warps
// whose operands lie in shared memory (wgmma), as functions. Compiled for the host, by the tests' emulator, they are
// the emulator's. Source: the PTX manual, "Asynchronous Warpgroup Level Matrix Instructions" and "Tensor copies".
// A copy of this file is in the packages that have such kernels; the products themselves are in a file of each.
#pragma once

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

// Of the current device; null, or what went wrong.
inline const char* device_attribute(cudaDeviceAttr name, int* to) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(to, name, device);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline bool has_wgmma() {
  int major = 0, minor = 0;
  return !device_attribute(cudaDevAttrComputeCapabilityMajor, &major) &&
         !device_attribute(cudaDevAttrComputeCapabilityMinor, &minor) && major == 9 && minor == 0;
}

// Bytes in up to four dimensions, the first of them contiguous, and the tiles they are copied in: `tile[0]` is 128. The
// data and all strides, in bytes, are on 16 bytes.
struct Tiling {
  const void* data;
  int rank;
  int64_t sizes[4];
  int64_t strides[4];  // strides[0]: 1
  int tile[4];
};

#if defined(__CUDACC__)

// Where tiles come from. A kernel takes it as `const __grid_constant__ TileMap`.
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

// Of what lies outside a tile has zeros. Null, or what went wrong.
inline const char* make_tile_map(const Tiling& tiling, TileMap* to) {
  const PFN_cuTensorMapEncodeTiled_v12000 encode = tile_map_encoder();
  if (!encode) return "this driver has no cuTensorMapEncodeTiled";
  cuuint64_t sizes[4], strides[3];
  cuuint32_t tile[4], steps[4];
  for (int i = 0; i < tiling.rank; ++i) {
    sizes[i] = cuuint64_t(tiling.sizes[i]);
    tile[i] = cuuint32_t(tiling.tile[i]);
    steps[i] = 1;
    if (i > 0) strides[i - 1] = cuuint64_t(tiling.strides[i]);
  }
  const CUresult result = encode(
      &to->map, CU_TENSOR_MAP_DATA_TYPE_UINT8, cuuint32_t(tiling.rank), const_cast<void*>(tiling.data), sizes, strides,
      tile, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
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

// The tile at these places of each dimension to shared memory, on kTileAlign.
__device__ __forceinline__ void copy_tile(void* shared, const TileMap& from, int byte, int row, Landing& landing) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n"
      :
      : "r"(uint32_t(__cvta_generic_to_shared(shared))), "l"(&from.map), "r"(byte), "r"(row), "r"(landing.address())
      : "memory");
}

__device__ __forceinline__ void copy_tile(void* shared, const TileMap& from, int byte, int second, int third, int fourth,
                                          Landing& landing) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];\n"
      :
      : "r"(uint32_t(__cvta_generic_to_shared(shared))), "l"(&from.map), "r"(byte), "r"(second), "r"(third), "r"(fourth),
        "r"(landing.address())
      : "memory");
}

// What a thread has written to shared memory itself, before products and copies of tiles are to see it.
__device__ __forceinline__ void publish_shared() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

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
  return address | uint64_t(kTileAlign >> 4) << 32 | uint64_t(1) << 62;
}

// The same of rows that are summed over, so an operand that is transposed: its columns are 64 of 16 bits to a row of the
// tile, the next 64 of them `beside` bytes further (bits 16 to 29, in 16 bytes). `from` is the first of the 16 rows.
__device__ __forceinline__ uint64_t operand_across(const uint8_t* from, int beside) {
  return operand(from) | uint64_t(beside >> 4) << 16;
}

// Before the first product, and after registers of its sums or operands were touched by others than products.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

// So that no read of a sum is moved before the wait for it.
__device__ __forceinline__ void hold(float& sum) { asm volatile("" : "+f"(sum)::"memory"); }
__device__ __forceinline__ void hold(int& sum) { asm volatile("" : "+r"(sum)::"memory"); }

template <class Sum, int kCount>
__device__ __forceinline__ void hold(Sum (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) hold(sums[i]);
}

// Until all are done: their sums can be read, their operands be overwritten.
template <class Sums>
__device__ __forceinline__ void finish_products(Sums& sums) {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
  hold(sums);
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
using cuda_emulator::operand;
using cuda_emulator::operand_across;
using cuda_emulator::publish_landings;
using cuda_emulator::publish_shared;
using cuda_emulator::take_registers;
using cuda_emulator::TileMap;

#endif

}  // namespace khub::cuda
