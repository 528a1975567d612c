// e4m3 weights times x as floats. Included inside a namespace after lanes.h and `widen_e4m3`, once per instruction set.
//
// Eight weight rows by 256 channels are widened and scaled once for all rows of x, into a panel that stays in the first
// cache. A sum is one of a panel at a time, in eight lanes, so that a row's bits are those it has alone.
//
// Roofline: with one row of x the weights' bytes, with many the multiply-adds.

static constexpr int64_t kFp8Panel = 256;  // channels

// Channels [k, k + width) of one weight row, scaled; zeros up to a multiple of 8. `width` at most kFp8Panel.
static void widen_fp8(const QuantizedMatmul& q, int64_t n, int64_t k, int64_t width, float* to) {
  const uint8_t* from = q.weight + n * q.row_bytes + k;
  const float* scales = static_cast<const float*>(q.scales) + n / q.scale_rows * q.groups;
  for (int64_t at = 0; at < width;) {
    const int64_t group = q.groups == 1 ? 0 : (k + at) / q.group_size;
    const int64_t left = q.groups == 1 ? width : (group + 1) * q.group_size - k;
    const int64_t end = left < width ? left : width;
    const float scale = scales[group] * kE4M3Unit;
    for (; at + 8 <= end; at += 8) store(to + at, widen_e4m3(from + at) * scale);
    if (at < end) {  // of the row: a group ends at a multiple of 8
      uint8_t part[8] = {};
      std::memcpy(part, from + at, size_t(end - at));
      store(to + at, widen_e4m3(part) * scale);
      at = end;
    }
  }
}

// totals[m][n] += a panel's products, for kX rows of x and kW weight rows.
template <int kX, int kW>
KHUB_INLINE void add_fp8(const float* panel, int64_t width, const float* x, int64_t x_stride, f32x8* totals) {
  f32x8 sums[kX][kW] = {};
  for (int64_t k = 0; k < width; k += 8) {
    f32x8 weights[kW];
#pragma GCC unroll 4
    for (int n = 0; n < kW; ++n) weights[n] = load(panel + n * kFp8Panel + k);
#pragma GCC unroll 4
    for (int m = 0; m < kX; ++m) {
      const f32x8 values = load(x + m * x_stride + k);
#pragma GCC unroll 4
      for (int n = 0; n < kW; ++n) sums[m][n] += weights[n] * values;
    }
  }
  for (int m = 0; m < kX; ++m) {
    for (int n = 0; n < kW; ++n) totals[m * kFp8Tile + n] += sums[m][n];
  }
}

static void sum_fp8(const QuantizedMatmul& q, const float* x, int64_t x_stride, int64_t rows, int64_t first,
                    float* to) {
  alignas(64) float panel[kFp8Tile * kFp8Panel];
  alignas(64) f32x8 totals[kFp8Rows * kFp8Tile] = {};
  for (int64_t k = 0; k < q.k; k += kFp8Panel) {
    const int64_t width = kFp8Panel < q.k - k ? kFp8Panel : q.k - k;
    for (int64_t n = 0; n < kFp8Tile; ++n) {
      widen_fp8(q, first + n < q.n ? first + n : q.n - 1, k, width, panel + n * kFp8Panel);
    }
    int64_t m = 0;
    for (; m + 4 <= rows; m += 4) {
      for (int n = 0; n < kFp8Tile; n += 2) {
        add_fp8<4, 2>(panel + n * kFp8Panel, width, x + m * x_stride + k, x_stride, totals + m * kFp8Tile + n);
      }
    }
    for (; m < rows; ++m) {
      for (int n = 0; n < kFp8Tile; n += 4) {
        add_fp8<1, 4>(panel + n * kFp8Panel, width, x + m * x_stride + k, x_stride, totals + m * kFp8Tile + n);
      }
    }
  }
  for (int64_t i = 0; i < rows * kFp8Tile; ++i) to[i] = sum(totals[i]);
}
