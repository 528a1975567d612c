#include "attention_cpu.h"

namespace khub::cpu {

namespace {

template <class T>
void write_heads(const T* from, int64_t head_stride, const CacheView& view, int64_t block, int64_t slot,
                 const CacheWrite& w) {
  T* cache = static_cast<T*>(view.data) + block * view.block_stride + slot * view.slot_stride;
  for (int64_t head = 0; head < w.num_heads; ++head) {
    for (int64_t start = 0, d = 0; d < w.head_size; start += view.chunk_stride) {
      for (int64_t i = 0; i < view.chunk && d < w.head_size; ++i, ++d) {
        cache[head * view.head_stride + start + i * view.dim_stride] = from[head * head_stride + d];
      }
    }
  }
}

template <class T>
void write_tokens(const CacheWrite& w, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    const int64_t index = w.slot_mapping[token];
    if (index < 0) continue;
    const int64_t block = index / w.block_size, slot = index % w.block_size;
    write_heads(static_cast<const T*>(w.key) + token * w.key_token_stride, w.key_head_stride, w.key_cache,
                block, slot, w);
    write_heads(static_cast<const T*>(w.value) + token * w.value_token_stride, w.value_head_stride,
                w.value_cache, block, slot, w);
  }
}

}  // namespace

void write_cache(const CacheWrite& w, int64_t begin_token, int64_t end_token) {
  if (w.itemsize == 4) return write_tokens<uint32_t>(w, begin_token, end_token);
  write_tokens<uint16_t>(w, begin_token, end_token);
}

}  // namespace khub::cpu
