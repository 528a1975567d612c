// Two partial attentions joined: a warp takes a token's head.
#include "../finish.h"
#include "attention_cuda.h"
#include "device.h"

namespace khub::cuda {

namespace {

constexpr int kWarps = 4;

template <class T>
__global__ void merge_kernel(const Merge m) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= m.num_tokens * m.num_heads) return;
  const int64_t token = row / m.num_heads, head = row % m.num_heads;
  const auto part = [&](const Merge::Part& p) {
    return static_cast<const T*>(p.out) + token * p.token_stride + head * p.head_stride;
  };
  const T *a = part(m.parts[0]), *b = part(m.parts[1]);
  T* out = static_cast<T*>(m.out) + token * m.out_token_stride + head * m.out_head_stride;
  const MergeWeights weights = merge_weights(m.parts[0].lse[row], m.parts[1].lse[row]);
  __syncwarp();  // out_lse may be one of the two that all lanes have read
  if (threadIdx.x % kWarp == 0) m.out_lse[row] = weights.lse;
  for (int64_t d = threadIdx.x % kWarp; d < m.head_size; d += kWarp) {
    // A part that saw no key says nothing: what is in its output, a NaN perhaps, is not looked at.
    const float first = weights.first == 0.0f ? 0.0f : weights.first * to_float(a[d]);
    const float second = weights.second == 0.0f ? 0.0f : weights.second * to_float(b[d]);
    from_float(first + second, out + d);
  }
}

template <class T>
const char* merge_as(const Merge& m, void* stream) {
  const int64_t blocks = (m.num_tokens * m.num_heads + kWarps - 1) / kWarps;
  if (blocks > 0x7fffffff) return "too many tokens and heads for one grid";
  return launch(merge_kernel<T>, dim3(unsigned(blocks)), dim3(kWarps * kWarp), stream, m);
}

}  // namespace

const char* merge_states(const Merge& m, void* stream) {
  if (m.num_tokens == 0 || m.num_heads == 0) return nullptr;
  switch (m.dtype) {
    case DType::f32: return merge_as<float>(m, stream);
    case DType::f16: return merge_as<__half>(m, stream);
    case DType::bf16: return merge_as<__nv_bfloat16>(m, stream);
  }
  return "unknown dtype";
}

}  // namespace khub::cuda
