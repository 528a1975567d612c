// Attention of one query token over its sequence's paged keys and values.
//
// A block has one token and up to kHeads query heads that share a KV head, so that each key and value is
// loaded once for all of them. Its warps take keys in turn, kUnroll at a time; a lane holds every 32nd
// element of a head. Each warp keeps its own running maximum, sum and output; they are merged at the end in
// the order of the warps, so the result depends on the token's own keys only and is the same in every run.
#include "../finish.h"
#include "attention_cuda.h"
#include "fp8.h"

namespace khub::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kUnroll = 4;

// The sequence that holds query token `token`: the last one that starts at or before it.
__device__ __forceinline__ int64_t find_sequence(const int32_t* query_start_loc, int64_t num_seqs,
                                                 int64_t token) {
  int64_t low = 0, high = num_seqs;  // query_start_loc[low] <= token < query_start_loc[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (query_start_loc[middle] <= token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Queries and outputs are few: which type they have is decided here, not in as many kernels more.
__device__ __forceinline__ float load_as(DType dtype, const void* from, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(from)[i];
  return dtype == DType::f16 ? to_float(static_cast<const __half*>(from)[i])
                             : to_float(static_cast<const __nv_bfloat16*>(from)[i]);
}

__device__ __forceinline__ void store_as(DType dtype, float value, void* to, int64_t i) {
  switch (dtype) {
    case DType::f32: return from_float(value, static_cast<float*>(to) + i);
    case DType::f16: return from_float(value, static_cast<__half*>(to) + i);
    case DType::bf16: return from_float(value, static_cast<__nv_bfloat16*>(to) + i);
  }
}

// T is the cache's type. kElements: elements of a head per lane, head_size <= 32 * kElements.
template <class T, int kHeads, int kElements>
__global__ void __launch_bounds__(kWarps* kWarp) attend_kernel(const Attention a) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t token = blockIdx.x;
  const int64_t group = a.num_heads / a.num_kv_heads;
  const int64_t tiles = (group + kHeads - 1) / kHeads;
  const int64_t kv_head = blockIdx.y / tiles;
  const int64_t first_head = kv_head * group + blockIdx.y % tiles * kHeads;
  const int64_t end_head = min(first_head + kHeads, (kv_head + 1) * group);

  const int64_t seq = a.query_start_loc ? find_sequence(a.query_start_loc, a.num_seqs, token) : token;
  const int64_t query_end = a.query_start_loc ? a.query_start_loc[seq + 1] : token + 1;
  const int64_t seq_len = min(int64_t(a.seq_lens[seq]), a.max_blocks * a.block_size);
  const Visible visible = visible_keys(a, token, query_end, seq_len);
  const int64_t end_key = visible.end_key;
  const int32_t* table = a.block_tables + seq * a.block_table_stride;

  const float scale = a.scale * (a.k_scale ? *a.k_scale : 1.0f);
  float query[kHeads][kElements], output[kHeads][kElements], maximum[kHeads], total[kHeads];
  int64_t key_offset[kElements], value_offset[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int64_t d = lane + e * kWarp;
    key_offset[e] = d / a.key.chunk * a.key.chunk_stride + d % a.key.chunk * a.key.dim_stride;
    value_offset[e] = d / a.value.chunk * a.value.chunk_stride + d % a.value.chunk * a.value.dim_stride;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const bool valid = d < a.head_size && first_head + h < end_head;
      const int64_t at = token * a.query_token_stride + (first_head + h) * a.query_head_stride + d;
      query[h][e] = valid ? load_as(a.dtype, a.query, at) * scale : 0.0f;
      output[h][e] = 0.0f;
    }
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    maximum[h] = -INFINITY;
    total[h] = 0.0f;
  }

  for (int64_t start = visible.first_key + warp * kUnroll; start < end_key; start += kWarps * kUnroll) {
    const T* values[kUnroll];
    float scores[kHeads][kUnroll];
    bool seen[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t key = start + u;
      const int64_t block = key < end_key && sees(visible, key) ? table[key / a.block_size] : -1;
      // A block id out of range cannot be reported from here; it must at least not be followed.
      seen[u] = block >= 0 && block < a.num_blocks;
      const int64_t slot = key % a.block_size;
      const T* keys = static_cast<const T*>(a.key.data) + block * a.key.block_stride +
                      slot * a.key.slot_stride + kv_head * a.key.head_stride;
      values[u] = static_cast<const T*>(a.value.data) + block * a.value.block_stride +
                  slot * a.value.slot_stride + kv_head * a.value.head_stride;
      float partial[kHeads] = {};
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const bool valid = seen[u] && lane + e * kWarp < a.head_size;
        const float k = valid ? to_float(keys[key_offset[e]]) : 0.0f;
#pragma unroll
        for (int h = 0; h < kHeads; ++h) partial[h] += query[h][e] * k;
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float score = warp_sum(partial[h]);
        if (a.softcap > 0.0f) score = a.softcap * tanhf(score / a.softcap);
        if (a.alibi_slopes && first_head + h < end_head) {
          score += a.alibi_slopes[first_head + h] * float(place_of(visible, key) - visible.position);
        }
        scores[h][u] = seen[u] ? score : -INFINITY;
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float new_maximum = maximum[h];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) new_maximum = fmaxf(new_maximum, scores[h][u]);
      const float correction = new_maximum == maximum[h] ? 1.0f : expf(maximum[h] - new_maximum);
      total[h] *= correction;
#pragma unroll
      for (int e = 0; e < kElements; ++e) output[h][e] *= correction;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        scores[h][u] = seen[u] ? expf(scores[h][u] - new_maximum) : 0.0f;
        total[h] += scores[h][u];
      }
      maximum[h] = new_maximum;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const bool valid = seen[u] && lane + e * kWarp < a.head_size;
        const float v = valid ? to_float(values[u][value_offset[e]]) : 0.0f;
#pragma unroll
        for (int h = 0; h < kHeads; ++h) output[h][e] += scores[h][u] * v;
      }
    }
  }

  __shared__ float warp_maximum[kWarps][kHeads], warp_total[kWarps][kHeads];
  __shared__ float warp_output[kWarps][kHeads][kElements * kWarp];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (lane == 0) {
      warp_maximum[warp][h] = maximum[h];
      warp_total[warp][h] = total[h];
    }
#pragma unroll
    for (int e = 0; e < kElements; ++e) warp_output[warp][h][lane + e * kWarp] = output[h][e];
  }
  __syncthreads();

  for (int h = warp; h < end_head - first_head; h += kWarps) {
    float row_maximum = -INFINITY, row_total = 0.0f, weight[kWarps];
    for (int w = 0; w < kWarps; ++w) row_maximum = fmaxf(row_maximum, warp_maximum[w][h]);
    for (int w = 0; w < kWarps; ++w) {
      weight[w] = warp_total[w][h] == 0.0f ? 0.0f : expf(warp_maximum[w][h] - row_maximum);
      row_total += weight[w] * warp_total[w][h];
    }
    const int64_t head = first_head + h;
    const Finish end = finish(a, head, row_maximum, row_total);
    const int64_t at = token * a.out_token_stride + head * a.out_head_stride;
    for (int64_t d = lane; d < a.head_size; d += kWarp) {
      float sum = 0.0f;
      for (int w = 0; w < kWarps; ++w) sum += weight[w] * warp_output[w][h][d];
      store_as(a.dtype, sum * end.factor, a.out, at + d);
    }
    if (a.lse && lane == 0) a.lse[token * a.num_heads + head] = end.lse;
  }
}

template <class T, int kHeads, int kElements>
const char* attend_with(const Attention& a, void* stream) {
  const int64_t group = a.num_heads / a.num_kv_heads;
  const int64_t blocks_per_token = a.num_kv_heads * ((group + kHeads - 1) / kHeads);
  if (a.num_tokens > 0x7fffffff || blocks_per_token > 0xffff) return "too many tokens or heads for one grid";
  return launch(attend_kernel<T, kHeads, kElements>, dim3(unsigned(a.num_tokens), unsigned(blocks_per_token)),
                dim3(kWarps * kWarp), stream, a);
}

template <class T, int kHeads>
const char* attend_heads(const Attention& a, void* stream) {
  if (a.head_size <= 2 * kWarp) return attend_with<T, kHeads, 2>(a, stream);
  if (a.head_size <= 4 * kWarp) return attend_with<T, kHeads, 4>(a, stream);
  return attend_with<T, kHeads, 8>(a, stream);
}

template <class T>
const char* attend_typed(const Attention& a, void* stream) {
  return a.num_heads == a.num_kv_heads ? attend_heads<T, 1>(a, stream) : attend_heads<T, 4>(a, stream);
}

}  // namespace

const char* attend(const Attention& a, void* stream) {
  if (a.num_tokens == 0) return nullptr;
  switch (a.cache_type) {
    case CacheType::e4m3: return attend_typed<__nv_fp8_e4m3>(a, stream);
    case CacheType::e5m2: return attend_typed<__nv_fp8_e5m2>(a, stream);
    case CacheType::same: break;
  }
  switch (a.dtype) {
    case DType::f32: return attend_typed<float>(a, stream);
    case DType::f16: return attend_typed<__half>(a, stream);
    case DType::bf16: return attend_typed<__nv_bfloat16>(a, stream);
  }
  return "unknown dtype";
}

}  // namespace khub::cuda
