// The products of a tile of weight rows with the digits of x, as 16-bit integers. Included inside a namespace after
// panels_impl.h and `add_products`, once per instruction set.
//
// Roofline: with one row of x the weights' bytes, each read once and in order; 16 multiply-adds take one
// instruction where floats take two and a conversion. With many rows the multiply-adds.

static constexpr int64_t kVector = 16;  // 16-bit values

// Vector j of the kBits-bit values in eight words: nibbles as they are stored, bytes with their sign.
template <int kBits>
KHUB_INLINE i16x16 unpack(u32x8 words, int j) {
  if (kBits == 4) return bit_cast<i16x16>((words >> (4 * j)) & 0x000f000fu);
  const i16x16 bytes = bit_cast<i16x16>(words);
  return j ? bytes >> 8 : (bytes << 8) >> 8;
}

KHUB_INLINE i32x8 add_pairs(i32x8 a, i32x8 b) {
  return __builtin_shuffle(a, b, i32x8{0, 8, 1, 9, 4, 12, 5, 13}) +
         __builtin_shuffle(a, b, i32x8{2, 10, 3, 11, 6, 14, 7, 15});
}

KHUB_INLINE i32x8 add_quads(i32x8 a, i32x8 b) {
  return __builtin_shuffle(a, b, i32x8{0, 1, 8, 9, 4, 5, 12, 13}) +
         __builtin_shuffle(a, b, i32x8{2, 3, 10, 11, 6, 7, 14, 15});
}

// Lane r of to[h]: the sum of half h of rows[r].
KHUB_INLINE void sum_halves(const i32x8* rows, i32x8* to) {
  const i32x8 low = add_quads(add_pairs(rows[0], rows[1]), add_pairs(rows[2], rows[3]));
  const i32x8 high = add_quads(add_pairs(rows[4], rows[5]), add_pairs(rows[6], rows[7]));
  to[0] = __builtin_shuffle(low, high, i32x8{0, 1, 2, 3, 8, 9, 10, 11});
  to[1] = __builtin_shuffle(low, high, i32x8{4, 5, 6, 7, 12, 13, 14, 15});
}

// sums += (products - zeros * sum of x) * scales, of one step.
KHUB_INLINE f32x8 scaled(i32x8 products, const Panel& p, const Digits& d, int64_t row, int64_t step, f32x8 sums) {
  f32x8 scale;
  std::memcpy(&scale, p.scales + step * kPanel, sizeof(scale));
  const int64_t at = row * d.steps + step;
  if (p.zeros) {
    i32x8 zero;
    std::memcpy(&zero, p.zeros + step * kPanel, sizeof(zero));
    products -= zero * d.sums[at];
  } else {
    products -= p.zero * d.sums[at];
  }
  return sums + __builtin_convertvector(products, f32x8) * (scale * d.scales[at]);
}

// `products` holds a vector for each weight row; its halves are two steps of 32 or both of one.
KHUB_INLINE f32x8 add_step(const i32x8* products, const Panel& p, const Digits& d, int64_t row, int64_t step,
                           f32x8 sums) {
  i32x8 halves[2];
  sum_halves(products, halves);
  if (d.step > 32) return scaled(halves[0] + halves[1], p, d, row, step, sums);
  sums = scaled(halves[0], p, d, row, step, sums);
  return step + 1 < d.steps ? scaled(halves[1], p, d, row, step + 1, sums) : sums;
}

// products[r] += 32 bytes of weight row r times the digits at `x`.
template <int kBits, bool kPart>
KHUB_INLINE void add_unit(const QuantizedMatmul& q, const Panel& p, int64_t at, const int16_t* x,
                          i32x8* products) {
#pragma GCC unroll 8
  for (int r = 0; r < kPanel; ++r) {
    const u32x8 words = load_words<kPart>(p.rows[r], at, q.row_bytes);
#pragma GCC unroll 4
    for (int j = 0; j < 16 / kBits; ++j) {
      i16x16 values;
      std::memcpy(&values, x + j * kVector, sizeof(values));
      products[r] = add_products(products[r], unpack<kBits>(words, j), values);
    }
  }
}

// All of k for one row of digits, weights unpacked in registers.
template <int kBits>
static void sum_panel(const QuantizedMatmul& q, const Digits& d, const Panel& p, int64_t row, float* to) {
  constexpr int64_t kUnit = 8 * 32 / kBits;  // of k, in 32 bytes
  const int64_t stride = d.step > kUnit ? d.step : kUnit, whole = q.row_bytes / 32 * kUnit;
  const int16_t* x = d.values + row * d.width;
  const uint8_t* later = p.later;
  f32x8 sums{};
  const int64_t turn = stride / d.step;
  for (int64_t k = 0, step = 0; k < d.width; k += stride, step += turn) {
    i32x8 products[kPanel] = {};
    int64_t at = k;
    for (; at < k + stride && at < whole; at += kUnit) {
      add_unit<kBits, false>(q, p, at / kUnit * 32, x + at, products);
      for (int line = 0; line < 4; ++line, later += 64) __builtin_prefetch(later, 0, 2);
    }
    for (; at < k + stride && at < d.width; at += kUnit) {
      add_unit<kBits, true>(q, p, at / kUnit * 32, x + at, products);
    }
    sums = add_step(products, p, d, row, step, sums);
  }
  std::memcpy(to, &sums, sizeof(sums));
}

// Weights [k, k + kUnpacked) of a panel: [kPanel, kUnpacked], in the order of the digits.
template <int kBits>
static void unpack_panel(const QuantizedMatmul& q, const Digits& d, const Panel& p, int64_t k, int16_t* to) {
  constexpr int64_t kUnit = 8 * 32 / kBits;
  for (int64_t at = k; at < k + kUnpacked && at < d.width; at += kUnit) {
    for (int r = 0; r < kPanel; ++r) {
      const int64_t byte = at / kUnit * 32;
      const u32x8 words = byte + 32 <= q.row_bytes ? load_words<false>(p.rows[r], byte, q.row_bytes)
                                                   : load_words<true>(p.rows[r], byte, q.row_bytes);
      for (int j = 0; j < 16 / kBits; ++j) {
        const i16x16 values = unpack<kBits>(words, j);
        std::memcpy(to + r * kUnpacked + at - k + j * kVector, &values, sizeof(values));
      }
    }
  }
}

// A stretch of k for one row of digits, of weights that are unpacked already.
static void sum_unpacked(const Digits& d, const Panel& p, const int16_t* weights, int64_t row, int64_t begin,
                         float* to) {
  f32x8 sums;
  std::memcpy(&sums, to, sizeof(sums));
  const int64_t stride = d.step > 64 ? d.step : 64;
  const int64_t end = begin + kUnpacked < d.width ? begin + kUnpacked : d.width;
  const int16_t* x = d.values + row * d.width;
  const int64_t turn = stride / d.step;
  int64_t step = begin / d.step;
  for (int64_t k = begin; k < end; k += stride, step += turn) {
    i32x8 products[kPanel] = {};
    for (int64_t at = k; at < k + stride && at < end; at += kVector) {
      i16x16 values;
      std::memcpy(&values, x + at, sizeof(values));
#pragma GCC unroll 8
      for (int r = 0; r < kPanel; ++r) {
        i16x16 weight;
        std::memcpy(&weight, weights + r * kUnpacked + at - begin, sizeof(weight));
        products[r] = add_products(products[r], weight, values);
      }
    }
    sums = add_step(products, p, d, row, step, sums);
  }
  std::memcpy(to, &sums, sizeof(sums));
}

template <int kBits>
static void sum_tile_of(const QuantizedMatmul& q, const Digits& d, int64_t first, const Scratch& s) {
  Panel panels[kTileRows / kPanel];
  const int64_t count = ((q.n - first < kTileRows ? q.n - first : kTileRows) + kPanel - 1) / kPanel;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = i * d.steps * kPanel;
    panels[i] = panel_at(q, d, first + i * kPanel, s.scales + at, s.zeros + at);
  }
  if (d.rows <= 2) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t row = 0; row < d.rows; ++row) {
        sum_panel<kBits>(q, d, panels[i], row, s.sums + row * kTileRows + i * kPanel);
      }
    }
    return;
  }
  std::memset(s.sums, 0, size_t(d.rows * kTileRows) * sizeof(float));
  for (int64_t k = 0; k < d.width; k += kUnpacked) {
    for (int64_t i = 0; i < count; ++i) unpack_panel<kBits>(q, d, panels[i], k, s.weights + i * kPanel * kUnpacked);
    for (int64_t row = 0; row < d.rows; ++row) {
      for (int64_t i = 0; i < count; ++i) {
        sum_unpacked(d, panels[i], s.weights + i * kPanel * kUnpacked, row, k, s.sums + row * kTileRows + i * kPanel);
      }
    }
  }
}

static void sum_tile(const QuantizedMatmul& q, const Digits& d, int64_t first, const Scratch& scratch) {
  if (q.bits == 4) return sum_tile_of<4>(q, d, first, scratch);
  sum_tile_of<8>(q, d, first, scratch);
}
