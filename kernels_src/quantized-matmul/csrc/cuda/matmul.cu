// A warp computes one output column for kRows rows of x: its lanes take 32-bit words of the weight row in
// turn, so that the weights are read once per kRows rows and coalesced, and add up their sums at the end.
#include "device.h"
#include "matmul_cuda.h"

namespace khub::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kRows = 8;

__device__ __forceinline__ float load_scale(const QuantizedMatmul& q, int64_t index) {
  switch (q.scale_dtype) {
    case DType::f16: return to_float(static_cast<const __half*>(q.scales)[index]);
    case DType::bf16: return to_float(static_cast<const __nv_bfloat16*>(q.scales)[index]);
    default: return static_cast<const float*>(q.scales)[index];
  }
}

// Four bytes of a weight row, zeros past its end. A row need not be aligned.
__device__ __forceinline__ uint32_t load_word(const uint8_t* row, int64_t at, int64_t row_bytes,
                                              bool aligned) {
  if (aligned && at + 4 <= row_bytes) return *reinterpret_cast<const uint32_t*>(row + at);
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    if (at + i < row_bytes) word |= uint32_t(row[at + i]) << (8 * i);
  }
  return word;
}

// An e4m3 in the low 8 bits: a float whose exponent is 120 too small, which the multiplication makes up for exactly.
__device__ __forceinline__ float e4m3_to_float(uint32_t byte) {
  const uint32_t bits = (byte & 0x80u) << 24 | (byte & 0x7fu) << 20;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value * 0x1p120f;
}

template <class T, Format kFormat>
__global__ void __launch_bounds__(kWarps* kWarp) matmul_kernel(const QuantizedMatmul q) {
  constexpr int kBits = kFormat == Format::int4 ? 4 : 8, kPerWord = 32 / kBits;
  const int lane = threadIdx.x % kWarp;
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (n >= q.n) return;  // the whole warp
  const uint8_t* row = q.weight + n * q.row_bytes;
  const bool aligned = reinterpret_cast<uintptr_t>(row) % 4 == 0;

  for (int64_t first = int64_t(blockIdx.y) * kRows; first < q.m; first += int64_t(gridDim.y) * kRows) {
    const T* x = static_cast<const T*>(q.x) + first * q.x_stride;
    float sums[kRows] = {};
    for (int64_t at = lane * 4; at < q.row_bytes; at += kWarp * 4) {
      const uint32_t word = load_word(row, at, q.row_bytes, aligned);
      const int64_t k = at * 8 / kBits;
      const int64_t group = n / q.scale_rows * q.groups + k / q.group_size;  // one for the whole word
      const float scale = load_scale(q, group);
      const int zero = kBits == 8 ? 0 : (q.zeros ? q.zeros[group] : 8);
#pragma unroll
      for (int i = 0; i < kPerWord; ++i) {
        if (k + i >= q.k) break;
        const uint32_t field = word >> (kBits * i);
        const float value = kFormat == Format::e4m3   ? e4m3_to_float(field & 255)
                            : kFormat == Format::int8 ? float(int8_t(field & 255))
                                                      : float(int(field & 15) - zero);
        const float weight = value * scale;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (first + r < q.m) sums[r] += weight * to_float(x[r * q.x_stride + k + i]);
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
const char* matmul_typed(const QuantizedMatmul& q, void* stream) {
  const int64_t columns = (q.n + kWarps - 1) / kWarps, rows = (q.m + kRows - 1) / kRows;
  if (columns > 0x7fffffff) return "too many output columns for one grid";
  const dim3 grid(unsigned(columns), unsigned(rows < 0xffff ? rows : 0xffff)), block(kWarps * kWarp);
  switch (format_of(q)) {
    case Format::int4: return launch(matmul_kernel<T, Format::int4>, grid, block, stream, q);
    case Format::int8: return launch(matmul_kernel<T, Format::int8>, grid, block, stream, q);
    case Format::e4m3: return launch(matmul_kernel<T, Format::e4m3>, grid, block, stream, q);
  }
  return "unknown format";
}

}  // namespace

const char* matmul(const QuantizedMatmul& q, void* stream) {
  if (q.m == 0 || q.n == 0) return nullptr;
  switch (q.dtype) {
    case DType::f32: return matmul_typed<float>(q, stream);
    case DType::f16: return matmul_typed<__half>(q, stream);
    case DType::bf16: return matmul_typed<__nv_bfloat16>(q, stream);
  }
  return "unknown dtype";
}

}  // namespace khub::cuda
