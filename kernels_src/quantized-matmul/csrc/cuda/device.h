// What every kernel needs on the device: conversions, warp reductions, a launch that reports its error.
// A copy of this file is in every package of this tree, so that each package builds alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace khub::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void from_float(float value, float* out) { *out = value; }
__device__ __forceinline__ void from_float(float value, __half* out) { *out = __float2half_rn(value); }
__device__ __forceinline__ void from_float(float value, __nv_bfloat16* out) {
  *out = __float2bfloat16_rn(value);
}

// Every lane gets the sum, added in the same order.
__device__ __forceinline__ float warp_sum(float value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

template <class... Params, class... Args>
const char* launch(void (*kernel)(Params...), dim3 grid, dim3 block, void* stream, Args... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, Params(args)...);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace khub::cuda
