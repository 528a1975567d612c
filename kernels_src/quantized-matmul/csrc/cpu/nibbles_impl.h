// 4-bit weights times x in bytes. Included inside a namespace after matmul_impl.h and `DigitSums`.
//
// x is fixed point as in matmul.cpp, but its whole numbers are cut into bytes with a sign, three of a float32, two
// of less, and one where the caller allows it. A product of a nibble and a byte takes half the instructions of one of
// 16 bits; the bytes' sums are put together again, exactly, before anything is scaled, so that no order of rows changes
// a bit.
//
// A panel of `prepack` has the same bytes of eight rows side by side: one stream of memory, and a lane for each row.
//
// Roofline: with one row of x the weights' bytes, each read once and in order.

static constexpr int64_t kAhead = 4096;  // bytes of a panel that are asked for before they are multiplied

// 64 nibbles of a weight row, times those of each row of x.
template <int kDigits, int kRows, bool kPart>
KHUB_INLINE void add_nibbles(const QuantizedMatmul& q, const uint8_t* weights, int64_t byte, const int8_t* x,
                             int64_t x_stride, DigitSums<kDigits>* sums) {
  const u32x8 words = load_words<kPart>(weights, byte, q.row_bytes);
  const u32x8 low = words & 0x0f0f0f0fu, high = (words >> 4) & 0x0f0f0f0fu;
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) sums[m].add(low, high, x + m * x_stride);
}

// products[m][r]: `kUnits` times 64 nibbles of weight row r times those of row m of x.
template <int kDigits, int kRows, int kUnits, bool kPart>
KHUB_INLINE void multiply_nibbles(const QuantizedMatmul& q, const Panel& p, int64_t k, const int8_t* x,
                                  int64_t x_stride, i32x8 (*products)[kPanel]) {
#pragma GCC unroll 8
  for (int r = 0; r < kPanel; ++r) {
    DigitSums<kDigits> sums[kRows] = {};
#pragma GCC unroll 2
    for (int unit = 0; unit < kUnits; ++unit) {
      const int8_t* values = x + unit * kNibbles * kDigits;
      add_nibbles<kDigits, kRows, kPart>(q, p.rows[r], k / 2 + unit * 32, values, x_stride, sums);
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) products[m][r] = sums[m].total();
  }
}

// Weight rows of a panel over all of k, for `kRows` rows of x from `row` on. A step that is longer than a unit has two.
// Each of them a function of its own: inlined into one the compiler has no registers for their constants.
template <int kDigits, int kRows, int kUnits>
__attribute__((noinline)) static void sum_nibbles(const QuantizedMatmul& q, const Digits& d, const Panel& p,
                                                  int64_t row, float* to) {
  constexpr int64_t stride = kUnits * kNibbles;
  const int64_t turn = stride / d.step, whole = q.row_bytes / 32 * kNibbles, x_stride = d.width * kDigits;
  const int8_t* x = d.bytes + row * x_stride;
  const uint8_t* later = p.later;
  f32x8 sums[kRows] = {};
  for (int64_t k = 0, step = 0; k < d.width; k += stride, step += turn) {
    i32x8 products[kRows][kPanel];
    if (k + stride <= whole) {
      multiply_nibbles<kDigits, kRows, kUnits, false>(q, p, k, x + k * kDigits, x_stride, products);
      for (int line = 0; kRows == 1 && line < 4 * kUnits; ++line, later += 64) __builtin_prefetch(later, 0, 2);
    } else {
      multiply_nibbles<kDigits, kRows, kUnits, true>(q, p, k, x + k * kDigits, x_stride, products);
    }
    for (int m = 0; m < kRows; ++m) sums[m] = add_step(products[m], p, d, row + m, step, sums[m]);
  }
  for (int m = 0; m < kRows; ++m) std::memcpy(to + m * kTileRows, &sums[m], sizeof(sums[m]));
}

template <int kDigits, int kUnits>
static void sum_nibbles_rows(const QuantizedMatmul& q, const Digits& d, const Panel& p, float* to) {
  constexpr int kTogether = kDigits == 1 ? 4 : kDigits == 2 ? 2 : 1;  // there are registers for
  int64_t row = 0;
  for (; row + kTogether <= d.rows; row += kTogether) {
    sum_nibbles<kDigits, kTogether, kUnits>(q, d, p, row, to + row * kTileRows);
  }
  for (; row < d.rows; ++row) sum_nibbles<kDigits, 1, kUnits>(q, d, p, row, to + row * kTileRows);
}

// A panel of `prepack` for `kRows` rows of x from `row` on: a lane is a weight row, so nothing is summed across lanes. A turn
// is `kHalves` times 32 channels, half of which x has in a row for the low nibbles, and half for the high ones.
template <int kDigits, int kRows, int kHalves>
__attribute__((noinline)) static void sum_panel_nibbles(const QuantizedMatmul& q, const Digits& d, const Panel& p,
                                                        int64_t row, float* to) {
  const int64_t x_stride = d.width * kDigits;
  const int8_t* x = d.bytes + row * x_stride;
  const uint8_t* words = p.rows[0];
  f32x8 sums[kRows] = {};
  for (int64_t step = 0, k = 0; step < d.steps; ++step) {
    const int64_t end = k + d.step < q.k ? k + d.step : q.k;
    i32x8 products[kRows] = {};
    for (; k < end; k += kHalves * 32) {
      const int8_t* values = x + (k & -kNibbles) * kDigits + (k & (kNibbles - 1)) / 2;
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half, values += 16, words += 4 * 32) {
        if (kRows == 1) {
          __builtin_prefetch(words + kAhead, 0, 3);
          __builtin_prefetch(words + kAhead + 64, 0, 3);
        }
        DigitSums<kDigits> digits[kRows] = {};
#pragma GCC unroll 4
        for (int word = 0; word < 4; ++word) {
          u32x8 both;
          std::memcpy(&both, words + word * 32, sizeof(both));
          const u32x8 low = both & 0x0f0f0f0fu, high = (both >> 4) & 0x0f0f0f0fu;
#pragma GCC unroll 4
          for (int m = 0; m < kRows; ++m) digits[m].add_word(low, high, values + m * x_stride + word * 4);
        }
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) products[m] += digits[m].total();
      }
    }
    for (int m = 0; m < kRows; ++m) sums[m] = scaled(products[m], p, d, row + m, step, sums[m]);
  }
  for (int m = 0; m < kRows; ++m) std::memcpy(to + m * kTileRows, &sums[m], sizeof(sums[m]));
}

template <int kDigits, int kHalves>
static void sum_panel_rows(const QuantizedMatmul& q, const Digits& d, const Panel& p, float* to) {
  constexpr int64_t kTogether = kDigits == 1 ? 4 : kDigits == 2 ? 2 : 1;  // there are registers for
  int64_t row = 0;
  for (; row + kTogether <= d.rows; row += kTogether) {
    sum_panel_nibbles<kDigits, kTogether, kHalves>(q, d, p, row, to + row * kTileRows);
  }
  for (; row < d.rows; ++row) sum_panel_nibbles<kDigits, 1, kHalves>(q, d, p, row, to + row * kTileRows);
}

static void sum_panels_tile(const QuantizedMatmul& q, const Digits& d, int64_t first, const Scratch& s) {
  for (int64_t i = 0; i < kTileRows / kPanel && first + i * kPanel < q.n; ++i) {
    const Panel panel = panel_at(q, d, first + i * kPanel, s.scales, s.zeros);
    float* to = s.sums + i * kPanel;
    const bool whole = d.step > 32;
    switch (d.in_bytes) {
      case 3: whole ? sum_panel_rows<3, 2>(q, d, panel, to) : sum_panel_rows<3, 1>(q, d, panel, to); break;
      case 2: whole ? sum_panel_rows<2, 2>(q, d, panel, to) : sum_panel_rows<2, 1>(q, d, panel, to); break;
      default: whole ? sum_panel_rows<1, 2>(q, d, panel, to) : sum_panel_rows<1, 1>(q, d, panel, to);
    }
  }
}

static void sum_nibbles_tile(const QuantizedMatmul& q, const Digits& d, int64_t first, const Scratch& s) {
  if (q.panels) return sum_panels_tile(q, d, first, s);
  for (int64_t i = 0; i < kTileRows / kPanel && first + i * kPanel < q.n; ++i) {
    const Panel panel = panel_at(q, d, first + i * kPanel, s.scales, s.zeros);
    float* to = s.sums + i * kPanel;
    const bool two = d.step > kNibbles;
    if (d.in_bytes == 3) {
      two ? sum_nibbles_rows<3, 2>(q, d, panel, to) : sum_nibbles_rows<3, 1>(q, d, panel, to);
    } else if (d.in_bytes == 2) {
      two ? sum_nibbles_rows<2, 2>(q, d, panel, to) : sum_nibbles_rows<2, 1>(q, d, panel, to);
    } else {
      two ? sum_nibbles_rows<1, 2>(q, d, panel, to) : sum_nibbles_rows<1, 1>(q, d, panel, to);
    }
  }
}

// The low bytes of 32 whole numbers, those of even channels apart from those of odd ones, as nibbles lie in their bytes.
KHUB_INLINE void low_bytes(const i32x8* whole, int8_t* even, int8_t* odd) {
  __m256i low[4];
  for (int v = 0; v < 4; ++v) low[v] = bit_cast<__m256i>(whole[v] & 0xff);
  // A half has the first four of each vector, the other the last four; then in it the even ones before the odd.
  const __m256i halves = _mm256_packus_epi16(_mm256_packus_epi32(low[0], low[1]), _mm256_packus_epi32(low[2], low[3]));
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
  const __m256i apart = _mm256_shuffle_epi8(halves, order);
  const __m128i first = _mm256_castsi256_si128(apart), last = _mm256_extracti128_si256(apart, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(even), _mm_unpacklo_epi16(first, last));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(odd), _mm_unpackhi_epi16(first, last));
}

// 32 whole numbers as bytes with a sign, `apart` from one digit to the next.
template <int kDigits>
KHUB_INLINE void cut(i32x8* whole, int8_t* to, int64_t apart) {
#pragma GCC unroll 3
  for (int digit = 0; digit < kDigits; ++digit, to += apart) {
    low_bytes(whole, to, to + 32);
    for (int v = 0; v < 4; ++v) whole[v] = (whole[v] + 128) >> 8;  // less what the byte has
  }
}

// One step of row m, whose bytes are at `row`: `count` floats, zeros after them up to a multiple of 32.
template <int kDigits>
static void cut_step(const float* x, int64_t count, Digits& d, int64_t m, int64_t step, int8_t* row) {
  i32x8 most{}, sums{};
  for (int64_t k = 0; k < count; k += 8) {
    const i32x8 magnitude = bit_cast<i32x8>(load(x + k)) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  }
  int32_t bits = 0;
  for (int i = 0; i < 8; ++i) bits = most[i] > bits ? most[i] : bits;
  const float top = float(kDigits == 1 ? kOneByte : kDigits == 2 ? kTwoBytes : kLargest / d.step);
  const float unit = khub::float_from_bits(uint32_t(bits)) / top;
  const bool finite = bits < 0x7f800000, divides = finite && unit >= 0x1p-126f;  // of less there is nothing
  const f32x8 inverse = splat(divides ? top / khub::float_from_bits(uint32_t(bits)) : 0.0f);
  const f32x8 magic = splat(0x1.8p23f);  // adding it leaves the nearest whole number in the low bits
  for (int64_t k = 0; k < count; k += 32) {
    i32x8 whole[4] = {};
    for (int v = 0; divides && v < 4; ++v) {
      whole[v] = bit_cast<i32x8>(load(x + k + 8 * v) * inverse + magic) - bit_cast<i32x8>(magic);
      sums += whole[v];
    }
    const int64_t at = step * d.step + k;
    const int64_t apart = d.abreast * kNibbles;
    cut<kDigits>(whole, row + at / kNibbles * kDigits * apart + at % kNibbles / 2, apart);
  }
  int32_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += sums[i];
  d.sums[m * d.steps + step] = sum;
  d.scales[m * d.steps + step] = divides ? unit : finite ? 0.0f : __builtin_nanf("");
}

template <class T, int kDigits>
static void fill_rows(const QuantizedMatmul& q, Digits& d, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    const T* from = static_cast<const T*>(q.x) + m * q.x_stride;
    int8_t* const row = d.row_at(m, kDigits);
    for (int64_t s = 0; s < d.steps; ++s, from += d.step) {
      const int64_t count = q.k - s * d.step < d.step ? q.k - s * d.step : d.step;
      float x[kStep] = {};
      int64_t k = 0;
      for (; k + 8 <= count; k += 8) store(x + k, load(from + k));
      if (k < count) store(x + k, load_part(from + k, count - k));
      cut_step<kDigits>(x, count, d, m, s, row);
    }
  }
}

template <class T, int kDigits>
static void fill_rows_or_coarse(const QuantizedMatmul& q, Digits& d, int64_t begin, int64_t end) {
  if (d.in_bytes == 1) return fill_rows<T, 1>(q, d, begin, end);
  fill_rows<T, kDigits>(q, d, begin, end);
}

static void fill_bytes(const QuantizedMatmul& q, Digits& d, int64_t begin, int64_t end) {
  switch (q.dtype) {
    case DType::f32: return fill_rows_or_coarse<float, 3>(q, d, begin, end);
    case DType::f16: return fill_rows_or_coarse<Half, 2>(q, d, begin, end);
    case DType::bf16: return fill_rows_or_coarse<BFloat16, 2>(q, d, begin, end);
  }
}
