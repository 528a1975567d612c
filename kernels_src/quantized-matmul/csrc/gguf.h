// A product with weights in the blocks of GGUF files. Numbers, and layouts, are ggml's.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace khub {

enum class BlockType : int64_t { q4_0 = 2, q8_0 = 8, q4_k = 12, q5_k = 13, q6_k = 14 };

// out[m, n] = sum over k of x[m, k] * w[n, k], plus bias[n].
struct GgufMatmul {
  DType dtype;  // of x, bias and out
  int64_t m;
  int64_t n;
  int64_t k;  // a multiple of the block's values
  const void* x;
  int64_t x_stride;
  void* out;
  int64_t out_stride;
  const void* bias;  // [n], or null
  BlockType type;
  const uint8_t* weight;  // [n, row_bytes], at any address
  int64_t row_bytes;
};

// A block is `kGroups` groups of 32 values.
template <BlockType T>
struct Block {
  static constexpr int kGroups = T == BlockType::q4_0 || T == BlockType::q8_0 ? 1 : 8;
  static constexpr int kBytes = T == BlockType::q4_0   ? 18
                                : T == BlockType::q8_0 ? 34
                                : T == BlockType::q4_k ? 144
                                : T == BlockType::q5_k ? 176
                                                       : 210;
};

}  // namespace khub
