// What the kernels are told: raw pointers, sizes and strides (in elements), already checked by the binding.
#pragma once

#include <cstdint>

#include "fp8.h"

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

// What a cache holds: the query's dtype, or eight bits a number, times a scale.
enum class CacheType : int32_t { same = 0, e4m3 = 1, e5m2 = 2 };

struct Attention {
  DType dtype;  // of query and out
  CacheType cache_type;
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
  const float* sinks;              // [num_heads], or null
  const float* k_scale;            // one float on the device, or null: 1
  const float* v_scale;
  float scale;
  float softcap;   // 0: none
  int64_t window;  // 0: none; else the keys a query sees, itself included
  bool causal;
  const int32_t* tree_mask;  // [num_tokens, tree_mask_words], or null; see visible.h
  int64_t tree_mask_stride;
  int64_t tree_mask_words;
};

struct CacheWrite {
  DType dtype;  // of key and value
  CacheType cache_type;
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
  const float* k_scale;         // one float on the device, or null: 1; what is stored is the value over it
  const float* v_scale;
  const int64_t* slot_mapping;  // [num_tokens], negative: skip
};

// Two partial results of the same rows and what they are together. `out` and `out_lse` may be either part.
struct Merge {
  DType dtype;
  int64_t num_tokens;
  int64_t num_heads;
  int64_t head_size;
  struct Part {
    const void* out;  // [num_tokens, num_heads, head_size], the last dimension contiguous
    int64_t token_stride;
    int64_t head_stride;
    const float* lse;  // [num_tokens, num_heads]
  } parts[2];
  void* out;
  int64_t out_token_stride;
  int64_t out_head_stride;
  float* out_lse;
};

// Blocks of contiguous numbers to another dtype; one of the two is of eight bits.
struct Convert {
  DType dtype;  // of the wide side
  CacheType cache_type;
  bool narrow;  // to eight bits
  int64_t num_blocks;
  int64_t block_items;
  const void* input;
  int64_t input_block_stride;
  void* output;
  int64_t output_block_stride;
  float scale;  // of what is in eight bits
};

}  // namespace khub
