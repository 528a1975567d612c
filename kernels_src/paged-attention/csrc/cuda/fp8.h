#pragma once

#include <cuda_fp8.h>

#include "device.h"

namespace khub::cuda {

__device__ __forceinline__ float to_float(__nv_fp8_e4m3 value) { return float(value); }
__device__ __forceinline__ float to_float(__nv_fp8_e5m2 value) { return float(value); }

// To nearest, ties to even; what is too large becomes the largest.
__device__ __forceinline__ void from_float(float value, __nv_fp8_e4m3* out) { *out = __nv_fp8_e4m3(value); }
__device__ __forceinline__ void from_float(float value, __nv_fp8_e5m2* out) { *out = __nv_fp8_e5m2(value); }

}  // namespace khub::cuda
