// What the kernels are told: raw pointers, sizes and strides (in elements), already checked by the binding.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace khub {

// A paged cache. Element d of a head is (d / chunk) * chunk_stride + (d % chunk) * dim_stride from the head's
// first one, which describes [blocks, block_size, heads, head_size] as well as the classic
// [blocks, heads, head_size / x, block_size, x].
struct CacheView {
  void* data;
  int64_t block_stride;
  int64_t slot_stride;
  int64_t head_stride;
  int64_t chunk;
  int64_t chunk_stride;
  int64_t dim_stride;
};

struct Attention {
  DType dtype;
  int64_t num_tokens;
  int64_t num_seqs;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_size;
  int64_t num_blocks;
  int64_t block_size;
  int64_t max_blocks;  // columns of the block table
  const void* query;
  int64_t query_token_stride;
  int64_t query_head_stride;
  void* out;
  int64_t out_token_stride;
  int64_t out_head_stride;
  float* lse;  // [num_tokens, num_heads], or null
  CacheView key;
  CacheView value;
  const int32_t* block_tables;
  int64_t block_table_stride;
  const int32_t* seq_lens;
  const int32_t* query_start_loc;  // [num_seqs + 1]; null: one token per sequence
  const float* alibi_slopes;       // [num_heads], or null
  float scale;
  float softcap;   // 0: none
  int64_t window;  // 0: none; else the keys a query sees, itself included
  bool causal;
  const int32_t* tree_mask;  // [num_tokens, tree_mask_words], or null; see visible.h
  int64_t tree_mask_stride;
  int64_t tree_mask_words;
};

struct CacheWrite {
  int64_t itemsize;  // 2 or 4 bytes: a write copies bits
  int64_t num_tokens;
  int64_t num_heads;
  int64_t head_size;
  int64_t num_blocks;
  int64_t block_size;
  const void* key;  // [num_tokens, num_heads, head_size], the last dimension contiguous
  int64_t key_token_stride;
  int64_t key_head_stride;
  const void* value;
  int64_t value_token_stride;
  int64_t value_head_stride;
  CacheView key_cache;
  CacheView value_cache;
  const int64_t* slot_mapping;  // [num_tokens], negative: skip
};

}  // namespace khub
