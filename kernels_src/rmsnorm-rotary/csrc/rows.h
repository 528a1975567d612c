// What the kernels are told: raw pointers, sizes and strides (in elements), already checked by the binding.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace khub {

// out = input * rsqrt(mean(input^2) + epsilon) * weight, row by row. With a residual, the sum of both takes
// the place of input: it is stored in residual, and the result in input.
struct RmsNorm {
  DType dtype;
  int64_t rows;
  int64_t size;
  void* out;
  int64_t out_stride;
  const void* input;
  int64_t input_stride;
  void* residual;  // or null
  int64_t residual_stride;
  const void* weight;
  float epsilon;
};

// silu(x) = x * sigmoid(x); gelu(x) = x * Phi(x), by tanh x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), quick
// x * sigmoid(1.702 x); fatrelu(x) = x above the threshold, else 0.
enum class Function : int32_t { silu, gelu, gelu_tanh, gelu_quick, fatrelu };

// out[row] = f(gate[row]), rounded, and times up[row] where there is one.
struct Activation {
  DType dtype;
  Function function;
  float threshold;
  int64_t rows;
  int64_t size;
  void* out;
  int64_t out_stride;
  const void* gate;
  const void* up;  // or null
  int64_t input_stride;  // of both
};

struct Heads {
  void* data;
  int64_t count;
  int64_t token_stride;
  int64_t head_stride;
};

// Rotates the first 2 * half elements of every head in place. Pair i is (i, half + i) in NeoX order and
// (2i, 2i + 1) in GPT-J order.
struct Rotary {
  DType dtype;
  DType cache_dtype;
  int64_t num_tokens;
  int64_t half;
  int64_t max_position;
  const int64_t* positions;
  const void* cos_sin_cache;  // [max_position, 2 * half]: cosines, then sines
  int64_t cache_stride;
  Heads query;
  Heads key;  // count 0: no key
  bool is_neox;
};

// Any strides; those of what is broadcast are 0.
struct View {
  void* data;
  int64_t strides[4];
};

// out1 = x1 * cos - x2 * sin, out2 = x1 * sin + x2 * cos; conj: by the angle's negative. Each output may be the input of
// its number.
struct ApplyRotary {
  DType dtype;
  int64_t sizes[4];  // the last is a row
  View x1, x2, cos, sin, out1, out2;
  bool conj;

  int64_t rows() const { return sizes[0] * sizes[1] * sizes[2]; }
};

// A cache of heads in blocks of tokens.
struct PagedHeads {
  void* data;
  int64_t block_stride;
  int64_t token_stride;
  int64_t head_stride;
};

// What a projection gave, in one pass: heads of query and key are normalised as by RmsNorm (where there is a weight)
// and rotated; the query stays where it is, the key goes to the cache, and the value as it is.
struct QkNormRopeCache {
  Rotary rotary;  // its query and key
  Heads value;    // as many as of the key
  int64_t head_size;
  const void* query_weight;  // [head_size], or null
  const void* key_weight;
  float epsilon;
  PagedHeads key_cache;
  PagedHeads value_cache;
  int64_t block_size;
  int64_t num_slots;
  int64_t num_mapped;  // tokens that have a slot: a step that is padded for a CUDA graph has more tokens
  const int64_t* slot_mapping;  // [num_mapped]; below 0: not to the cache
};

}  // namespace khub
