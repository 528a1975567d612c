// The product of many rows in blocks: weights are copied once for all rows of x, a panel of 16 weight rows by kBlockK
// channels at a time, and multiplied from the first cache, 6 rows of x by 16 weights in registers. What is narrow is
// widened as it is copied. Included inside a namespace after linear_impl.h.
//
// Roofline: the multiply-adds. For each channel a tile loads 2 vectors and 6 values for 12 multiply-adds.

static constexpr int64_t kNear = 16;  // stripes of x that stay in the second cache while the panels pass
static constexpr int64_t kTile = kStripe * kPanelWidth;

template <class T>
static void fill_stripe(const Linear& q, int64_t first, int64_t end, float* to) {
  static_assert(kStripe <= 8, "a column is eight lanes");
  const T* rows[8];
  for (int64_t r = 0; r < 8; ++r) {  // past the last: the first again, and zeros later
    rows[r] = static_cast<const T*>(q.x) + (first + r < end && r < kStripe ? first + r : first) * q.x_stride;
  }
  int64_t k = 0;
  for (; k + kLanes < q.k; k += kLanes) {  // a column's last lanes are where the next column begins
    f32x8 from[8], columns[8];
    for (int r = 0; r < 8; ++r) from[r] = first + r < end ? load(rows[r] + k) : f32x8{};
    transpose(from, columns);
    for (int i = 0; i < 8; ++i) store(to + (k + i) * kStripe, columns[i]);
  }
  for (; k < q.k; ++k) {
    for (int64_t r = 0; r < kStripe; ++r) to[k * kStripe + r] = first + r < end ? khub::to_float(rows[r][k]) : 0.0f;
  }
}

// Weight rows [first, first + 8) over channels [k, k + count), widened: to[channel * kPanelWidth + row]. Past the last
// row: the last again.
template <class T>
static void fill_panel(const Linear& q, int64_t first, int64_t k, int64_t count, float* to) {
  const T* rows[8];
  for (int64_t r = 0; r < 8; ++r) {
    rows[r] = static_cast<const T*>(q.weight) + std::min(first + r, q.n - 1) * q.weight_stride + k;
  }
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    f32x8 from[8], columns[8];
    for (int r = 0; r < 8; ++r) from[r] = load(rows[r] + c);
    transpose(from, columns);
    for (int i = 0; i < 8; ++i) store(to + (c + i) * kPanelWidth, columns[i]);
  }
  for (; c < count; ++c) {
    for (int r = 0; r < 8; ++r) to[c * kPanelWidth + r] = khub::to_float(rows[r][c]);
  }
}

// sums [kStripe, kPanelWidth] (+)= a stripe of x times a panel, over `count` channels. A function of its own: it needs
// all registers.
__attribute__((noinline)) static void multiply_tile(const float* x, const float* panel, int64_t count, float* sums,
                                                    bool start) {
  f32v tile[kStripe][2] = {};
#pragma GCC unroll 4
  for (int64_t k = 0; k < count; ++k) {
    const f32v low = load(panel + k * kPanelWidth), high = load(panel + k * kPanelWidth + 8);
#pragma GCC unroll 6
    for (int r = 0; r < kStripe; ++r) {
      const f32v one = splat(x[k * kStripe + r]);
      tile[r][0] += one * low;
      tile[r][1] += one * high;
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kStripe; ++r) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      float* to = sums + r * kPanelWidth + half * 8;
      store(to, start ? tile[r][half] : load(to) + tile[r][half]);
    }
  }
}

// The sums of panels that begin at weight row `begin`, rounded: [panel][stripe][kStripe, kPanelWidth].
template <class T>
static void round_sums(const Linear& q, const Stripes& x, int64_t begin, int64_t end, const float* sums) {
  const int64_t stripes = (x.rows + kStripe - 1) / kStripe;
  const T* bias = static_cast<const T*>(q.bias);
  for (int64_t m = 0; m < x.rows; ++m) {
    T* out = static_cast<T*>(q.out) + (x.first + m) * q.out_stride;
    const float* row = sums + m / kStripe * kTile + m % kStripe * kPanelWidth;
    for (int64_t n = begin; n < end; n += 8) {
      const float* from = row + (n - begin) / kPanelWidth * stripes * kTile + (n - begin) % kPanelWidth;
      if (n + 8 <= end) {
        store(out + n, bias ? load(from) + load(bias + n) : load(from));
      } else {
        for (int64_t c = 0; n + c < end; ++c) {
          khub::from_float(bias ? from[c] + khub::to_float(bias[n + c]) : from[c], out + n + c);
        }
      }
    }
  }
}

template <class T>
static void multiply_block(const Linear& q, const Stripes& x, int64_t begin, int64_t end, float* panels, float* sums) {
  const int64_t stripes = (x.rows + kStripe - 1) / kStripe;
  for (int64_t k = 0; k < q.k; k += kBlockK) {
    const int64_t count = std::min(q.k - k, kBlockK);
    for (int64_t n = begin; n < end; n += 8) {
      fill_panel<T>(q, n, k, count, panels + (n - begin) / kPanelWidth * kPanelWidth * kBlockK + (n - begin) % kPanelWidth);
    }
    for (int64_t near = 0; near < stripes; near += kNear) {
      for (int64_t n = begin; n < end; n += kPanelWidth) {
        for (int64_t s = near; s < std::min(near + kNear, stripes); ++s) {
          multiply_tile(x.values + (s * q.k + k) * kStripe, panels + (n - begin) * kBlockK, count,
                        sums + ((n - begin) / kPanelWidth * stripes + s) * kTile, k == 0);
        }
      }
    }
  }
  round_sums<T>(q, x, begin, end, sums);
}

static void fill_stripes(const Linear& q, const Stripes& x, int64_t begin, int64_t end) {
  for (int64_t s = begin; s < end; ++s) {
    const int64_t first = x.first + s * kStripe, last = x.first + x.rows;
    float* to = x.values + s * q.k * kStripe;
    switch (q.dtype) {
      case DType::f32: fill_stripe<float>(q, first, last, to); break;
      case DType::f16: fill_stripe<Half>(q, first, last, to); break;
      case DType::bf16: fill_stripe<BFloat16>(q, first, last, to); break;
    }
  }
}

static void multiply_blocks(const Linear& q, const Stripes& x, int64_t begin, int64_t end) {
  const int64_t stripes = (x.rows + kStripe - 1) / kStripe, panels = (end - begin + kPanelWidth - 1) / kPanelWidth;
  const std::unique_ptr<float[]> memory(new float[size_t(panels * (kPanelWidth * kBlockK + stripes * kTile) + 16)]);
  float* const on_line = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64);
  float* const sums = on_line + panels * kPanelWidth * kBlockK;
  switch (q.dtype) {
    case DType::f32: return multiply_block<float>(q, x, begin, end, on_line, sums);
    case DType::f16: return multiply_block<Half>(q, x, begin, end, on_line, sums);
    case DType::bf16: return multiply_block<BFloat16>(q, x, begin, end, on_line, sums);
  }
}
