// Sums of products of x and GGUF's blocks. Included inside a namespace after lanes.h and `widen_bytes`, once per
// instruction set.
//
// A value is widened to a float in registers, an integer times a scale plus an offset, and multiplied: with few rows of
// x straight from the block, each byte of it read once and in order, with more from a panel that all of them share. In
// both a sum is one of 256 channels at a time, four lanes' sums each, so that a row's bits are those it has alone.
//
// Roofline: with one row of x the weights' bytes; about four instructions for eight weights keep up with the memory.
// With many rows the multiply-adds.

static constexpr int64_t kGroup = 32;   // channels, in four vectors
static constexpr int64_t kChunk = 256;  // that are summed before they are added to the total
static constexpr int64_t kFew = 3;      // rows of x for which blocks are widened as they are multiplied

KHUB_INLINE i32x8 bytes_at(const uint8_t* from) {
  uint64_t bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  return widen_bytes(bytes);
}

KHUB_INLINE i32x8 signed_at(const uint8_t* from) { return (bytes_at(from) ^ 128) - 128; }

KHUB_INLINE float half_at(const uint8_t* from) {
  khub::Half half;
  std::memcpy(&half, from, sizeof(half));
#if defined(KHUB_F16C)
  return _cvtsh_ss(half.bits);
#else
  return khub::to_float(half);
#endif
}

// Eight bytes' lower or upper halves.
KHUB_INLINE i32x8 nibbles_at(const uint8_t* from, bool upper) {
  const i32x8 bytes = bytes_at(from);
  return upper ? bytes >> 4 : bytes & 15;
}

// Values [8 j, 8 j + 8) of a group.
template <BlockType T>
KHUB_INLINE i32x8 values_at(const uint8_t* block, int group, int j) {
  if (T == BlockType::q4_0) return nibbles_at(block + 2 + j % 2 * 8, j / 2);
  if (T == BlockType::q8_0) return signed_at(block + 2 + j * 8);
  if (T == BlockType::q6_k) {
    const int half = group / 4, quarter = group % 4;
    const i32x8 high = (bytes_at(block + 128 + half * 32 + j * 8) >> (quarter * 2)) & 3;
    return nibbles_at(block + half * 64 + quarter % 2 * 32 + j * 8, quarter / 2) | (high << 4);
  }
  const i32x8 low = nibbles_at(block + (T == BlockType::q4_k ? 16 : 48) + group / 2 * 32 + j * 8, group % 2);
  if (T == BlockType::q4_k) return low;
  return low | (((bytes_at(block + 16 + j * 8) >> group) & 1) << 4);
}

// What a block's values are multiplied by, and what is added then: by group, or by half group with Q6_K.
template <BlockType T>
struct Scaling {
  static constexpr int kCount = T == BlockType::q6_k ? 16 : khub::Block<T>::kGroups;
  alignas(32) float scales[kCount];
  alignas(32) float offsets[kCount];
};

// The bytes of two words as whole numbers.
KHUB_INLINE f32x8 numbers(uint32_t first, uint32_t second) {
  return __builtin_convertvector(widen_bytes(uint64_t(second) << 32 | first), f32x8);
}

template <BlockType T>
KHUB_INLINE Scaling<T> scaling_of(const uint8_t* block) {
  Scaling<T> to;
  if constexpr (T == BlockType::q4_0 || T == BlockType::q8_0) {
    to.scales[0] = half_at(block);
    to.offsets[0] = T == BlockType::q4_0 ? -8.0f * to.scales[0] : 0.0f;
  } else if constexpr (T == BlockType::q6_k) {
    const float d = half_at(block + 208);
    for (int i = 0; i < 16; i += 8) {
      const f32x8 scales = __builtin_convertvector(signed_at(block + 192 + i), f32x8) * d;
      store(to.scales + i, scales);
      store(to.offsets + i, scales * -32.0f);
    }
  } else {
    // Six bits of scale and of minimum for each group: of the first four in bytes of their own, whose upper two bits
    // are those of the last four.
    uint32_t words[3];
    std::memcpy(words, block + 4, sizeof(words));
    constexpr uint32_t kLow = 0x0f0f0f0f, kSix = 0x3f3f3f3f, kHigh = 0x30303030;
    const uint32_t scale = (words[2] & kLow) | ((words[0] >> 2) & kHigh);
    const uint32_t minimum = ((words[2] >> 4) & kLow) | ((words[1] >> 2) & kHigh);
    store(to.scales, numbers(words[0] & kSix, scale) * half_at(block));
    store(to.offsets, numbers(words[1] & kSix, minimum) * -half_at(block + 2));
  }
  return to;
}

template <BlockType T>
KHUB_INLINE void widen_group(const uint8_t* block, const Scaling<T>& s, int group, f32x8* to) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const int at = T == BlockType::q6_k ? group * 2 + j / 2 : group;
    to[j] = __builtin_convertvector(values_at<T>(block, group, j), f32x8) * s.scales[at] + s.offsets[at];
  }
}

KHUB_INLINE f32x8 together(const f32x8* sums) { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }

// One weight row times kRows of x, straight from its blocks. A function of its own: it needs all registers.
template <BlockType T, int kRows>
__attribute__((noinline)) static void sum_row(const uint8_t* block, int64_t width, const float* x, int64_t x_stride,
                                              float* to) {
  constexpr int kGroups = khub::Block<T>::kGroups;
  f32x8 totals[kRows] = {};
  for (int64_t chunk = 0; chunk < width; chunk += kChunk) {
    const int64_t end = chunk + kChunk < width ? chunk + kChunk : width;
    f32x8 sums[kRows][4] = {};
    for (int64_t k = chunk; k < end; k += kGroups * kGroup, block += khub::Block<T>::kBytes) {
      const Scaling<T> scaling = scaling_of<T>(block);
#pragma GCC unroll 8
      for (int group = 0; group < kGroups; ++group) {
        f32x8 weights[4];
        widen_group<T>(block, scaling, group, weights);
#pragma GCC unroll 2
        for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) sums[m][j] += weights[j] * load(x + m * x_stride + k + group * kGroup + j * 8);
        }
      }
    }
    for (int m = 0; m < kRows; ++m) totals[m] += together(sums[m]);
  }
  for (int m = 0; m < kRows; ++m) to[m * kGgufTile] = sum(totals[m]);
}

// Up to a chunk of a weight row as floats; returns where the next begins.
template <BlockType T>
static const uint8_t* widen_chunk(const uint8_t* block, int64_t width, float* to) {
  constexpr int kGroups = khub::Block<T>::kGroups;
  for (int64_t k = 0; k < width; k += kGroups * kGroup, block += khub::Block<T>::kBytes) {
    const Scaling<T> scaling = scaling_of<T>(block);
#pragma GCC unroll 8
    for (int group = 0; group < kGroups; ++group) {
      f32x8 weights[4];
      widen_group<T>(block, scaling, group, weights);
      std::memcpy(to + k + group * kGroup, weights, sizeof(weights));
    }
  }
  return block;
}

// totals[m] += a chunk of one weight row times kRows of x.
template <int kRows>
KHUB_INLINE void add_chunk(const float* weights, int64_t width, const float* x, int64_t x_stride, f32x8* totals) {
  f32x8 sums[kRows][4] = {};
  for (int64_t k = 0; k < width; k += kGroup) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const f32x8 weight = load(weights + k + j * 8);
#pragma GCC unroll 3
      for (int m = 0; m < kRows; ++m) sums[m][j] += weight * load(x + m * x_stride + k + j * 8);
    }
  }
  for (int m = 0; m < kRows; ++m) totals[m * kGgufTile] += together(sums[m]);
}

template <BlockType T>
static void sum_tile_of(const GgufMatmul& q, const float* x, int64_t x_stride, int64_t rows, int64_t first,
                        int64_t weight_rows, float* to) {
  const uint8_t* weight = q.weight + first * q.row_bytes;
  if (rows <= kFew) {
    for (int64_t n = 0; n < weight_rows; ++n, weight += q.row_bytes) {
      int64_t m = 0;
      for (; m + 2 <= rows; m += 2) sum_row<T, 2>(weight, q.k, x + m * x_stride, x_stride, to + m * kGgufTile + n);
      if (m < rows) sum_row<T, 1>(weight, q.k, x + m * x_stride, x_stride, to + m * kGgufTile + n);
    }
    return;
  }
  alignas(64) float panel[kGgufTile * kChunk];
  alignas(64) f32x8 totals[kGgufRows * kGgufTile] = {};
  const uint8_t* next[kGgufTile];
  for (int64_t n = 0; n < weight_rows; ++n) next[n] = weight + n * q.row_bytes;
  for (int64_t k = 0; k < q.k; k += kChunk) {
    const int64_t width = kChunk < q.k - k ? kChunk : q.k - k;
    for (int64_t n = 0; n < weight_rows; ++n) next[n] = widen_chunk<T>(next[n], width, panel + n * kChunk);
    int64_t m = 0;
    for (; m + 3 <= rows; m += 3) {
      for (int64_t n = 0; n < weight_rows; ++n) {
        add_chunk<3>(panel + n * kChunk, width, x + m * x_stride + k, x_stride, totals + m * kGgufTile + n);
      }
    }
    for (; m < rows; ++m) {
      for (int64_t n = 0; n < weight_rows; ++n) {
        add_chunk<1>(panel + n * kChunk, width, x + m * x_stride + k, x_stride, totals + m * kGgufTile + n);
      }
    }
  }
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < weight_rows; ++n) to[m * kGgufTile + n] = sum(totals[m * kGgufTile + n]);
  }
}

static void sum_gguf(const GgufMatmul& q, const float* x, int64_t x_stride, int64_t rows, int64_t first,
                     int64_t weight_rows, float* to) {
  switch (q.type) {
    case BlockType::q4_0: return sum_tile_of<BlockType::q4_0>(q, x, x_stride, rows, first, weight_rows, to);
    case BlockType::q8_0: return sum_tile_of<BlockType::q8_0>(q, x, x_stride, rows, first, weight_rows, to);
    case BlockType::q4_k: return sum_tile_of<BlockType::q4_k>(q, x, x_stride, rows, first, weight_rows, to);
    case BlockType::q5_k: return sum_tile_of<BlockType::q5_k>(q, x, x_stride, rows, first, weight_rows, to);
    case BlockType::q6_k: return sum_tile_of<BlockType::q6_k>(q, x, x_stride, rows, first, weight_rows, to);
  }
}
