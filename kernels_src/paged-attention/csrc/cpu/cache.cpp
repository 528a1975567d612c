#include <type_traits>

#include "attention_cpu.h"

namespace khub::cpu {

namespace {

// A division, as the reference does it, not a product with the inverse: the nearest number in eight bits is another.
template <class T, class Stored>
void store(T from, float scale, Stored* to) {
  if constexpr (std::is_same_v<T, Stored>) {
    *to = from;
  } else {
    from_float(to_float(from) / scale, to);
  }
}

template <class T, class Stored>
void write_heads(const void* tokens, int64_t token_offset, int64_t head_stride, const CacheView& view,
                 const float* scale, int64_t block, int64_t slot, const CacheWrite& w) {
  const T* from = static_cast<const T*>(tokens) + token_offset;
  const float divisor = scale ? *scale : 1.0f;
  Stored* cache = static_cast<Stored*>(view.data) + block * view.block_stride + slot * view.slot_stride;
  for (int64_t head = 0; head < w.num_heads; ++head) {
    for (int64_t start = 0, d = 0; d < w.head_size; start += view.chunk_stride) {
      for (int64_t i = 0; i < view.chunk && d < w.head_size; ++i, ++d) {
        store(from[head * head_stride + d], divisor, cache + head * view.head_stride + start + i * view.dim_stride);
      }
    }
  }
}

template <class T, class Stored>
void write_tokens(const CacheWrite& w, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    const int64_t index = w.slot_mapping[token];
    if (index < 0) continue;
    const int64_t block = index / w.block_size, slot = index % w.block_size;
    write_heads<T, Stored>(w.key, token * w.key_token_stride, w.key_head_stride, w.key_cache, w.k_scale, block, slot,
                           w);
    write_heads<T, Stored>(w.value, token * w.value_token_stride, w.value_head_stride, w.value_cache, w.v_scale,
                           block, slot, w);
  }
}

template <class T>
void write_as(const CacheWrite& w, int64_t begin, int64_t end) {
  switch (w.cache_type) {
    case CacheType::same: return write_tokens<T, T>(w, begin, end);
    case CacheType::e4m3: return write_tokens<T, E4M3>(w, begin, end);
    case CacheType::e5m2: return write_tokens<T, E5M2>(w, begin, end);
  }
}

template <class T, class Stored>
void convert_blocks(const Convert& c, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    if (c.narrow) {
      const T* from = static_cast<const T*>(c.input) + block * c.input_block_stride;
      Stored* to = static_cast<Stored*>(c.output) + block * c.output_block_stride;
      for (int64_t i = 0; i < c.block_items; ++i) store(from[i], c.scale, to + i);
    } else {
      const Stored* from = static_cast<const Stored*>(c.input) + block * c.input_block_stride;
      T* to = static_cast<T*>(c.output) + block * c.output_block_stride;
      for (int64_t i = 0; i < c.block_items; ++i) from_float(to_float(from[i]) * c.scale, to + i);
    }
  }
}

template <class T>
void convert_as(const Convert& c, int64_t begin, int64_t end) {
  if (c.cache_type == CacheType::e4m3) return convert_blocks<T, E4M3>(c, begin, end);
  convert_blocks<T, E5M2>(c, begin, end);
}

}  // namespace

void write_cache(const CacheWrite& w, int64_t begin_token, int64_t end_token) {
  switch (w.dtype) {
    case DType::f32: return write_as<float>(w, begin_token, end_token);
    case DType::f16: return write_as<Half>(w, begin_token, end_token);
    case DType::bf16: return write_as<BFloat16>(w, begin_token, end_token);
  }
}

void convert(const Convert& c, int64_t begin_block, int64_t end_block) {
  switch (c.dtype) {
    case DType::f32: return convert_as<float>(c, begin_block, end_block);
    case DType::f16: return convert_as<Half>(c, begin_block, end_block);
    case DType::bf16: return convert_as<BFloat16>(c, begin_block, end_block);
  }
}

}  // namespace khub::cpu
