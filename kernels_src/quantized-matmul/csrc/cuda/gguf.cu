// A warp computes one output column for kRows rows of x from GGUF's blocks: each lane takes a value of a group of 32,
// so that x and the blocks are read coalesced, and the lanes add up their sums at the end.
#include "device.h"
#include "gguf_cuda.h"

namespace khub::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kRows = 8;
constexpr int kGroup = 32;

// A float16 at any address: rows of blocks need not be aligned.
__device__ __forceinline__ float half_at(const uint8_t* from) {
  const uint16_t bits = uint16_t(from[0] | from[1] << 8);
  return __half2float(*reinterpret_cast<const __half*>(&bits));
}

// A value of Q4_K or Q5_K with the scale and the minimum of its group. Six bits of each: of the first four groups in
// bytes of their own, whose upper two bits are those of the last four.
__device__ __forceinline__ float scaled(const uint8_t* block, int group, int value) {
  const uint8_t* packed = block + 4;
  int scale = packed[group] & 63, minimum = packed[group + 4] & 63;
  if (group >= 4) {
    scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6 << 4);
    minimum = (packed[group + 4] >> 4) | (packed[group] >> 6 << 4);
  }
  return float(value) * (half_at(block) * float(scale)) - half_at(block + 2) * float(minimum);
}

// Value `lane` of a group.
template <BlockType T>
__device__ __forceinline__ float weight_at(const uint8_t* block, int group, int lane) {
  const int pair = group / 2, odd = group % 2, half = group / 4, quarter = group % 4;
  if (T == BlockType::q4_0) {
    return float(((block[2 + lane % 16] >> (lane / 16 * 4)) & 15) - 8) * half_at(block);
  }
  if (T == BlockType::q8_0) return float(int8_t(block[2 + lane])) * half_at(block);
  if (T == BlockType::q4_k) return scaled(block, group, (block[16 + pair * 32 + lane] >> (odd * 4)) & 15);
  if (T == BlockType::q5_k) {
    const int low = (block[48 + pair * 32 + lane] >> (odd * 4)) & 15;
    return scaled(block, group, low | ((block[16 + lane] >> group) & 1) << 4);
  }
  const int low = (block[half * 64 + quarter % 2 * 32 + lane] >> (quarter / 2 * 4)) & 15;
  const int high = (block[128 + half * 32 + lane] >> (quarter * 2)) & 3;
  const float scale = half_at(block + 208) * float(int8_t(block[192 + group * 2 + lane / 16]));
  return float((low | high << 4) - 32) * scale;
}

template <class T, BlockType kType>
__global__ void __launch_bounds__(kWarps* kWarp) gguf_kernel(const GgufMatmul q) {
  using Block = khub::Block<kType>;
  const int lane = threadIdx.x % kWarp;
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (n >= q.n) return;  // the whole warp
  const uint8_t* row = q.weight + n * q.row_bytes;

  for (int64_t first = int64_t(blockIdx.y) * kRows; first < q.m; first += int64_t(gridDim.y) * kRows) {
    const T* x = static_cast<const T*>(q.x) + first * q.x_stride;
    float sums[kRows] = {};
    const uint8_t* block = row;
    for (int64_t k = lane; k < q.k; block += Block::kBytes) {
#pragma unroll
      for (int group = 0; group < Block::kGroups; ++group, k += kGroup) {
        const float weight = weight_at<kType>(block, group, lane);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (first + r < q.m) sums[r] += weight * to_float(x[r * q.x_stride + k]);
        }
      }
    }
    const float bias = q.bias ? to_float(static_cast<const T*>(q.bias)[n]) : 0.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = warp_sum(sums[r]);
      if (lane == 0 && first + r < q.m) {
        from_float(sum + bias, static_cast<T*>(q.out) + (first + r) * q.out_stride + n);
      }
    }
  }
}

template <class T>
const char* matmul_typed(const GgufMatmul& q, void* stream) {
  const int64_t columns = (q.n + kWarps - 1) / kWarps, rows = (q.m + kRows - 1) / kRows;
  if (columns > 0x7fffffff) return "too many output columns for one grid";
  const dim3 grid(unsigned(columns), unsigned(rows < 0xffff ? rows : 0xffff)), block(kWarps * kWarp);
  switch (q.type) {
    case BlockType::q4_0: return launch(gguf_kernel<T, BlockType::q4_0>, grid, block, stream, q);
    case BlockType::q8_0: return launch(gguf_kernel<T, BlockType::q8_0>, grid, block, stream, q);
    case BlockType::q4_k: return launch(gguf_kernel<T, BlockType::q4_k>, grid, block, stream, q);
    case BlockType::q5_k: return launch(gguf_kernel<T, BlockType::q5_k>, grid, block, stream, q);
    case BlockType::q6_k: return launch(gguf_kernel<T, BlockType::q6_k>, grid, block, stream, q);
  }
  return "unknown type of blocks";
}

}  // namespace

const char* matmul(const GgufMatmul& q, void* stream) {
  if (q.m == 0 || q.n == 0) return nullptr;
  switch (q.dtype) {
    case DType::f32: return matmul_typed<float>(q, stream);
    case DType::f16: return matmul_typed<__half>(q, stream);
    case DType::bf16: return matmul_typed<__nv_bfloat16>(q, stream);
  }
  return "unknown dtype";
}

}  // namespace khub::cuda
