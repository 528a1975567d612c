#include <cuda_runtime.h>

#include "relu.h"

namespace {  // nvcc derives its name from the file's path: builds in two folders must not differ by it

__global__ void relu_kernel(float* out, const float* input, int64_t count) {
  int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = input[i] > 0 ? input[i] : 0;
}

}  // namespace

std::string relu(float* out, const float* input, int64_t count, void* stream) {
  if (count == 0) return {};
  relu_kernel<<<unsigned((count + 255) / 256), 256, 0, static_cast<cudaStream_t>(stream)>>>(out, input, count);
  cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? std::string() : cudaGetErrorString(error);
}
