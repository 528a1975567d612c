#include <cuda_runtime.h>

#include "kernel.h"

namespace {

constexpr int kThreads = 256;

__global__ void scale_add_kernel(float* out, const float* x, const float* y, float scale, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) {
    out[i] = scale * x[i] + y[i];
  }
}

}  // namespace

const char* scale_add(float* out, const float* x, const float* y, float scale, std::int64_t count, void* stream) {
  if (count == 0) {
    return nullptr;
  }
  const auto blocks = static_cast<unsigned int>((count + kThreads - 1) / kThreads);
  scale_add_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(out, x, y, scale, count);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
