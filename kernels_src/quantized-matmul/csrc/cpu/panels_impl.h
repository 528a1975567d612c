// Where weights lie, in rows or in panels of `prepack`, and their scales and zero points. Included inside a namespace
// after lanes.h, once per instruction set.

typedef uint32_t u32x8 __attribute__((vector_size(32)));

// 32 bytes of a weight row; where its end is near, `kPart`, what there is of them and zeros after it.
template <bool kPart>
KHUB_INLINE u32x8 load_words(const uint8_t* row, int64_t at, int64_t row_bytes) {
  u32x8 words{};
  if (!kPart) {  // a copy of a constant size is one load
    std::memcpy(&words, row + at, 32);
  } else if (at < row_bytes) {
    std::memcpy(&words, row + at, size_t(row_bytes - at < 32 ? row_bytes - at : 32));
  }
  return words;
}

// Eight words from byte `byte` of weight rows [first, first + 8), a lane for each row.
KHUB_INLINE void load_words_of(const QuantizedMatmul& q, int64_t first, int64_t byte, f32x8* words) {
  if (q.panels) {
    std::memcpy(words, q.weight + first * q.row_bytes + byte * 8, 8 * sizeof(*words));
    return;
  }
  f32x8 rows[8];
  for (int r = 0; r < 8; ++r) {
    const uint8_t* row = q.weight + (first + r < q.n ? first + r : q.n - 1) * q.row_bytes;
    rows[r] = bit_cast<f32x8>(byte + 32 <= q.row_bytes ? load_words<false>(row, byte, q.row_bytes)
                                                       : load_words<true>(row, byte, q.row_bytes));
  }
  transpose(rows, words);
}

// Where a panel's weight rows and what belongs to them lie.
struct Panel {
  const uint8_t* rows[kPanel];  // past the last row: the last one again
  const float* scales;          // [steps, kPanel]
  const int32_t* zeros;         // the same, or null:
  int32_t zero;                 // of all
  const uint8_t* later;  // what to ask for meanwhile, in order
};

// The scales of a weight row as floats, one for each step, `kPanel` apart.
template <class T>
static void spread(const T* from, int64_t groups, int64_t per_group, int64_t steps, int64_t begin, float* to) {
  for (int64_t g = begin; g < groups; ++g) {
    const float scale = khub::to_float(from[g]);
    const int64_t end = groups == 1 ? steps : (g + 1) * per_group;
    for (int64_t s = g * per_group; s < end; ++s) to[s * kPanel] = scale;
  }
}

// Where each step has a group of its own, eight groups of the panel's rows at a time. Returns the groups done.
template <class T>
static int64_t gather_groups(const QuantizedMatmul& q, int64_t first, float* scales) {
  const T* from[kPanel];
  for (int64_t r = 0; r < kPanel; ++r) {
    from[r] = static_cast<const T*>(q.scales) + (first + r < q.n ? first + r : q.n - 1) * q.groups;
  }
  int64_t g = 0;
  for (; g + 8 <= q.groups; g += 8) {
    f32x8 rows[8], columns[8];
    for (int r = 0; r < 8; ++r) rows[r] = load(from[r] + g);
    transpose(rows, columns);
    std::memcpy(scales + g * kPanel, columns, sizeof(columns));
  }
  return g;
}

template <class T>
static void gather_scales(const QuantizedMatmul& q, const Digits& d, int64_t first, float* scales) {
  const int64_t per_group = q.groups == 1 ? 0 : q.group_size / d.step;
  const int64_t done = per_group == 1 ? gather_groups<T>(q, first, scales) : 0;
  for (int64_t r = 0; r < kPanel; ++r) {
    const int64_t n = first + r < q.n ? first + r : q.n - 1;
    spread(static_cast<const T*>(q.scales) + n * q.groups, q.groups, per_group, d.steps, done, scales + r);
  }
}

// The scales, and zero points, of a panel by step, a lane for each row.
static void gather(const QuantizedMatmul& q, const Digits& d, int64_t first, float* scales, int32_t* zeros) {
  switch (q.scale_dtype) {
    case DType::f32: gather_scales<float>(q, d, first, scales); break;
    case DType::f16: gather_scales<Half>(q, d, first, scales); break;
    case DType::bf16: gather_scales<BFloat16>(q, d, first, scales); break;
  }
  for (int64_t r = 0; q.zeros && r < kPanel; ++r) {
    const uint8_t* from = q.zeros + (first + r < q.n ? first + r : q.n - 1) * q.groups;
    for (int64_t s = 0; s < d.steps; ++s) {
      zeros[s * kPanel + r] = from[q.groups == 1 ? 0 : s * d.step / q.group_size];
    }
  }
}

// The scales, and zero points, of a panel of `prepack` by step, a lane for each row.
template <class T>
static void widen_scales(const QuantizedMatmul& q, const Digits& d, int64_t first, float* scales) {
  const T* from = static_cast<const T*>(q.scales) + first * q.groups;
  for (int64_t s = 0; s < d.steps; ++s) store(scales + s * kPanel, load(from + s * d.step / q.group_size * kPanel));
}

static Panel prepacked_at(const QuantizedMatmul& q, const Digits& d, int64_t first, float* scales, int32_t* zeros) {
  Panel panel = {};
  panel.rows[0] = q.weight + first * q.row_bytes;
  panel.scales = scales;
  panel.zero = 8;
  switch (q.scale_dtype) {
    case DType::f32:
      // Nothing to widen, and mostly nothing to repeat.
      if (q.groups == d.steps) {
        panel.scales = static_cast<const float*>(q.scales) + first * q.groups;
      } else {
        widen_scales<float>(q, d, first, scales);
      }
      break;
    case DType::f16: widen_scales<Half>(q, d, first, scales); break;
    case DType::bf16: widen_scales<BFloat16>(q, d, first, scales); break;
  }
  if (q.zeros) {
    const uint8_t* from = q.zeros + first * q.groups;
    for (int64_t s = 0; s < d.steps; ++s) {
      for (int64_t r = 0; r < kPanel; ++r) zeros[s * kPanel + r] = from[s * d.step / q.group_size * kPanel + r];
    }
    panel.zeros = zeros;
  }
  return panel;
}

// The panel whose first weight row is `top`, its scales and zero points gathered into those given.
static Panel panel_at(const QuantizedMatmul& q, const Digits& d, int64_t top, float* scales, int32_t* zeros) {
  if (q.panels) return prepacked_at(q, d, top, scales, zeros);
  gather(q, d, top, scales, zeros);
  Panel panel;
  for (int64_t r = 0; r < kPanel; ++r) panel.rows[r] = q.weight + (top + r < q.n ? top + r : q.n - 1) * q.row_bytes;
  panel.scales = scales;
  panel.zeros = q.zeros ? zeros : nullptr;
  panel.zero = q.bits == 4 ? 8 : 0;
  panel.later = top + 2 * kPanel <= q.n ? panel.rows[0] + kPanel * q.row_bytes : q.weight + (q.n - 1) * q.row_bytes;
  return panel;
}
