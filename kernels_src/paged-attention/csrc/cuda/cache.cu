#include "attention_cuda.h"
#include "device.h"

namespace khub::cuda {

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t offset_in(const CacheView& view, int64_t block, int64_t slot, int64_t head,
                                             int64_t d) {
  return block * view.block_stride + slot * view.slot_stride + head * view.head_stride +
         d / view.chunk * view.chunk_stride + d % view.chunk * view.dim_stride;
}

// One block per token.
template <class T>
__global__ void write_kernel(const CacheWrite w) {
  const int64_t token = blockIdx.x;
  const int64_t index = w.slot_mapping[token];
  if (index < 0 || index >= w.num_blocks * w.block_size) return;
  const int64_t block = index / w.block_size, slot = index % w.block_size;
  const T* key = static_cast<const T*>(w.key) + token * w.key_token_stride;
  const T* value = static_cast<const T*>(w.value) + token * w.value_token_stride;
  for (int64_t i = threadIdx.x; i < w.num_heads * w.head_size; i += blockDim.x) {
    const int64_t head = i / w.head_size, d = i % w.head_size;
    static_cast<T*>(w.key_cache.data)[offset_in(w.key_cache, block, slot, head, d)] =
        key[head * w.key_head_stride + d];
    static_cast<T*>(w.value_cache.data)[offset_in(w.value_cache, block, slot, head, d)] =
        value[head * w.value_head_stride + d];
  }
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
  const dim3 grid(unsigned(w.num_tokens)), block(kThreads);
  return w.itemsize == 4 ? launch(write_kernel<uint32_t>, grid, block, stream, w)
                         : launch(write_kernel<uint16_t>, grid, block, stream, w);
}

const char* copy_blocks(void* cache, int64_t num_blocks, int64_t block_bytes, int64_t stride_bytes,
                        const int64_t* mapping, int64_t num_pairs, void* stream) {
  if (num_pairs == 0 || block_bytes == 0) return nullptr;
  if (num_pairs > 0x7fffffff) return "too many pairs for one grid";
  const bool wide =
      (reinterpret_cast<uintptr_t>(cache) | uintptr_t(block_bytes) | uintptr_t(stride_bytes)) % 16 == 0;
  return wide ? copy_as<uint4>(cache, num_blocks, block_bytes, stride_bytes, mapping, num_pairs, stream)
              : copy_as<uint16_t>(cache, num_blocks, block_bytes, stride_bytes, mapping, num_pairs, stream);
}

}  // namespace khub::cuda
