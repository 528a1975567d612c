// A float32 product of many rows in blocks: weights are widened once for all rows of x, a panel of 16 weight rows
// by kBlockK channels at a time, and multiplied from the first cache, 6 rows of x by 16 weights in registers.
// Included inside a namespace after panels_impl.h.
//
// Roofline: the multiply-adds. For each channel a tile loads 2 vectors and 6 values for 12 multiply-adds; widening
// takes 6 instructions for 8 weights, which m / 8 multiply-adds share.

static constexpr int64_t kNear = 16;  // stripes of x that stay in the second cache while the panels pass

// The scales of weight rows [first, first + 8) at channel k, a lane for each row; past the last row: the last again.
template <class T>
KHUB_INLINE f32x8 scales_at(const QuantizedMatmul& q, int64_t first, int64_t group) {
  if (q.panels) return load(static_cast<const T*>(q.scales) + first * q.groups + group * 8);
  f32x8 scales{};
  for (int r = 0; r < 8; ++r) {
    const int64_t n = first + r < q.n ? first + r : q.n - 1;
    scales[r] = khub::to_float(static_cast<const T*>(q.scales)[n * q.groups + group]);
  }
  return scales;
}

static f32x8 scales_of(const QuantizedMatmul& q, int64_t first, int64_t group) {
  switch (q.scale_dtype) {
    case DType::f16: return scales_at<Half>(q, first, group);
    case DType::bf16: return scales_at<BFloat16>(q, first, group);
    default: return scales_at<float>(q, first, group);
  }
}

static i32x8 zeros_of(const QuantizedMatmul& q, int64_t first, int64_t group) {
  i32x8 zeros = i32x8{} + (q.bits == 4 ? 8 : 0);
  for (int r = 0; q.zeros && r < 8; ++r) {
    if (q.panels) {
      zeros[r] = q.zeros[first * q.groups + group * 8 + r];
      continue;
    }
    zeros[r] = q.zeros[(first + r < q.n ? first + r : q.n - 1) * q.groups + group];
  }
  return zeros;
}

// Value j of each word, a number of kBits: nibbles as they are stored, bytes with their sign.
template <int kBits>
KHUB_INLINE i32x8 value_of(i32x8 words, int j) {
  if (kBits == 4) return (words >> (4 * j)) & 15;
  return (words << (24 - 8 * j)) >> 24;
}

// Weight rows [first, first + 8) over channels [k, k + kBlockK), as floats: to[channel * kPanelWidth + row].
template <int kBits>
static void widen_rows(const QuantizedMatmul& q, int64_t first, int64_t k, float* to) {
  constexpr int64_t kPerWord = 32 / kBits, kUnit = 8 * kPerWord;
  const int64_t end = k + kBlockK < q.k ? k + kBlockK : q.k;
  for (int64_t at = k; at < end; at += kUnit) {
    f32x8 words[8];
    load_words_of(q, first, at / kUnit * 32, words);
    for (int64_t word = 0; word < 8 && at + word * kPerWord < end; word += 32 / kPerWord) {
      const int64_t group = q.groups == 1 ? 0 : (at + word * kPerWord) / q.group_size;
      const f32x8 scales = scales_of(q, first, group);
      const i32x8 zeros = zeros_of(q, first, group);
      for (int64_t w = word; w < word + 32 / kPerWord; ++w) {
#pragma GCC unroll 8
        for (int j = 0; j < kPerWord; ++j) {
          const i32x8 values = value_of<kBits>(bit_cast<i32x8>(words[w]), j) - zeros;
          const f32x8 wide = __builtin_convertvector(values, f32x8) * scales;
          std::memcpy(to + (at - k + w * kPerWord + j) * kPanelWidth, &wide, sizeof(wide));
        }
      }
    }
  }
}

// out (+)= a stripe of x times a panel, over `count` channels; the first block of channels brings the bias.
static void multiply_tile(const QuantizedMatmul& q, const float* x, const float* panel, int64_t count, int64_t row,
                          int64_t column, bool start) {
  f32x8 sums[kStripe][2] = {};
  float* out = static_cast<float*>(q.out) + row * q.out_stride + column;
  const int64_t rows = q.m - row < kStripe ? q.m - row : kStripe;
  for (int64_t r = 0; r < rows; ++r) __builtin_prefetch(out + r * q.out_stride, 1);
  for (int64_t k = 0; k < count; ++k, x += kStripe, panel += kPanelWidth) {
    const f32x8 low = load(panel), high = load(panel + 8);
#pragma GCC unroll 6
    for (int r = 0; r < kStripe; ++r) {
      const f32x8 one = splat(x[r]);
      sums[r][0] += one * low;
      sums[r][1] += one * high;
    }
  }
  float tile[kStripe][kPanelWidth];
  for (int r = 0; r < kStripe; ++r) {
    store(tile[r], sums[r][0]);
    store(tile[r] + 8, sums[r][1]);
  }
  const int64_t columns = q.n - column < kPanelWidth ? q.n - column : kPanelWidth;
  const float* bias = static_cast<const float*>(q.bias);
  for (int64_t r = 0; r < rows; ++r, out += q.out_stride) {
    if (start) {
      for (int64_t c = 0; c < columns; ++c) out[c] = tile[r][c] + (bias ? bias[column + c] : 0.0f);
    } else {
      for (int64_t c = 0; c < columns; ++c) out[c] += tile[r][c];
    }
  }
}

static void multiply_block(const QuantizedMatmul& q, const Stripes& x, int64_t begin, int64_t end, float* panels) {
  const int64_t stripes = (x.rows + kStripe - 1) / kStripe;
  for (int64_t k = 0; k < q.k; k += kBlockK) {
    const int64_t count = q.k - k < kBlockK ? q.k - k : kBlockK;
    for (int64_t n = begin; n < end; n += 8) {
      float* to = panels + (n - begin) / kPanelWidth * kPanelWidth * kBlockK + (n - begin) % kPanelWidth;
      q.bits == 4 ? widen_rows<4>(q, n, k, to) : widen_rows<8>(q, n, k, to);
    }
    for (int64_t near = 0; near < stripes; near += kNear) {
      for (int64_t n = begin; n < end; n += kPanelWidth) {
        for (int64_t s = near; s < near + kNear && s < stripes; ++s) {
          multiply_tile(q, x.values + (s * q.k + k) * kStripe, panels + (n - begin) * kBlockK, count,
                        x.first + s * kStripe, n, k == 0);
        }
      }
    }
  }
}
