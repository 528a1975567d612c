#include <type_traits>

#include "attention_cuda.h"
#include "fp8.h"

namespace khub::cuda {

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t offset_in(const CacheView& view, int64_t block, int64_t slot, int64_t head,
                                             int64_t d) {
  return block * view.block_stride + slot * view.slot_stride + head * view.head_stride +
         d / view.chunk * view.chunk_stride + d % view.chunk * view.dim_stride;
}

// A division, as the reference does it, not a product with the inverse: the nearest number in eight bits is another.
template <class T, class Stored>
__device__ __forceinline__ void store(T from, float scale, Stored* to) {
  if constexpr (std::is_same_v<T, Stored>) {
    *to = from;
  } else {
    from_float(to_float(from) / scale, to);
  }
}

// One block per token.
template <class T, class Stored>
__global__ void write_kernel(const CacheWrite w) {
  const int64_t token = blockIdx.x;
  const int64_t index = w.slot_mapping[token];
  if (index < 0 || index >= w.num_blocks * w.block_size) return;
  const int64_t block = index / w.block_size, slot = index % w.block_size;
  const float k_scale = w.k_scale ? *w.k_scale : 1.0f, v_scale = w.v_scale ? *w.v_scale : 1.0f;
  const T* key = static_cast<const T*>(w.key) + token * w.key_token_stride;
  const T* value = static_cast<const T*>(w.value) + token * w.value_token_stride;
  Stored* keys = static_cast<Stored*>(w.key_cache.data);
  Stored* values = static_cast<Stored*>(w.value_cache.data);
  for (int64_t i = threadIdx.x; i < w.num_heads * w.head_size; i += blockDim.x) {
    const int64_t head = i / w.head_size, d = i % w.head_size;
    store(key[head * w.key_head_stride + d], k_scale, keys + offset_in(w.key_cache, block, slot, head, d));
    store(value[head * w.value_head_stride + d], v_scale,
          values + offset_in(w.value_cache, block, slot, head, d));
  }
}

template <class T>
const char* write_typed(const CacheWrite& w, void* stream) {
  const dim3 grid(unsigned(w.num_tokens)), block(kThreads);
  switch (w.cache_type) {
    case CacheType::same: return launch(write_kernel<T, T>, grid, block, stream, w);
    case CacheType::e4m3: return launch(write_kernel<T, __nv_fp8_e4m3>, grid, block, stream, w);
    case CacheType::e5m2: return launch(write_kernel<T, __nv_fp8_e5m2>, grid, block, stream, w);
  }
  return "unknown type of cache";
}

// One block per kThreads numbers, of all the cache's blocks in turn.
template <class T, class Stored>
__global__ void convert_kernel(const Convert c) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= c.num_blocks * c.block_items) return;
  const int64_t block = i / c.block_items, item = i % c.block_items;
  const int64_t from = block * c.input_block_stride + item, to = block * c.output_block_stride + item;
  if (c.narrow) {
    store(static_cast<const T*>(c.input)[from], c.scale, static_cast<Stored*>(c.output) + to);
  } else {
    from_float(to_float(static_cast<const Stored*>(c.input)[from]) * c.scale, static_cast<T*>(c.output) + to);
  }
}

template <class T>
const char* convert_typed(const Convert& c, void* stream) {
  const int64_t blocks = (c.num_blocks * c.block_items + kThreads - 1) / kThreads;
  if (blocks > 0x7fffffff) return "too many numbers for one grid";
  const dim3 grid(static_cast<unsigned>(blocks)), block(kThreads);
  return c.cache_type == CacheType::e4m3 ? launch(convert_kernel<T, __nv_fp8_e4m3>, grid, block, stream, c)
                                         : launch(convert_kernel<T, __nv_fp8_e5m2>, grid, block, stream, c);
}

// One block per pair.
template <class T>
__global__ void copy_kernel(T* cache, int64_t num_blocks, int64_t block_items, int64_t stride_items,
                            const int64_t* mapping) {
  const int64_t from = mapping[2 * blockIdx.x], to = mapping[2 * blockIdx.x + 1];
  if (from < 0 || from >= num_blocks || to < 0 || to >= num_blocks) return;
  for (int64_t i = threadIdx.x; i < block_items; i += blockDim.x) {
    cache[to * stride_items + i] = cache[from * stride_items + i];
  }
}

template <class T>
const char* copy_as(void* cache, int64_t num_blocks, int64_t block_bytes, int64_t stride_bytes,
                    const int64_t* mapping, int64_t num_pairs, void* stream) {
  constexpr int64_t size = sizeof(T);
  return launch(copy_kernel<T>, dim3(unsigned(num_pairs)), dim3(kThreads), stream, static_cast<T*>(cache),
                num_blocks, block_bytes / size, stride_bytes / size, mapping);
}

}  // namespace

const char* write_cache(const CacheWrite& w, void* stream) {
  if (w.num_tokens == 0) return nullptr;
  if (w.num_tokens > 0x7fffffff) return "too many tokens for one grid";
  switch (w.dtype) {
    case DType::f32: return write_typed<float>(w, stream);
    case DType::f16: return write_typed<__half>(w, stream);
    case DType::bf16: return write_typed<__nv_bfloat16>(w, stream);
  }
  return "unknown dtype";
}

const char* convert(const Convert& c, void* stream) {
  switch (c.dtype) {
    case DType::f32: return convert_typed<float>(c, stream);
    case DType::f16: return convert_typed<__half>(c, stream);
    case DType::bf16: return convert_typed<__nv_bfloat16>(c, stream);
  }
  return "unknown dtype";
}

const char* copy_blocks(void* cache, int64_t num_blocks, int64_t block_bytes, int64_t stride_bytes,
                        const int64_t* mapping, int64_t num_pairs, void* stream) {
  if (num_pairs == 0 || block_bytes == 0) return nullptr;
  if (num_pairs > 0x7fffffff) return "too many pairs for one grid";
  const uintptr_t all = reinterpret_cast<uintptr_t>(cache) | uintptr_t(block_bytes) | uintptr_t(stride_bytes);
  const auto copy = all % 16 == 0 ? copy_as<uint4> : all % 2 == 0 ? copy_as<uint16_t> : copy_as<uint8_t>;
  return copy(cache, num_blocks, block_bytes, stride_bytes, mapping, num_pairs, stream);
}

}  // namespace khub::cuda
