// Dot products of a few rows of x with a few weight rows at a time, so that each load feeds several products.
// The weights are read where they are, once, in order; what is read is widened in registers. Included inside
// a namespace after lanes.h, once per instruction set.

static constexpr int64_t kStretch = 1024;  // of k: kTileRows of it stay near while all of x passes by
static constexpr int kRows = 4;            // rows of x,
static constexpr int kColumns = 3;         // and weight rows, that are multiplied together: 12 sums in registers
static constexpr int kSums = 16;           // numbers that those take in memory
static constexpr int kUnrolled = kTurn / kLanes;  // vectors of k in a turn of the loop

// Weight rows that are multiplied together, from some channel on. Past the last row: the last again.
template <class T>
struct Columns {
  const T* rows[kColumns];
};

template <class T>
KHUB_INLINE Columns<T> columns_at(const Linear& q, int64_t first, int64_t k) {
  Columns<T> columns;
  for (int c = 0; c < kColumns; ++c) {
    columns.rows[c] = static_cast<const T*>(q.weight) + std::min(first + c, q.n - 1) * q.weight_stride + k;
  }
  return columns;
}

// The first or second of two vectors of weights, in the order in which `widen` leaves x. In bfloat16 the numbers at even
// places are first: so to widen them takes a shift, or a mask, and no shuffle.
template <class T>
KHUB_INLINE f32v load_of_two(const T* from, int which) {
  return load(from + which * kLanes);
}

KHUB_INLINE f32v load_of_two(const khub::BFloat16* from, int which) {
  u32v pairs;
  std::memcpy(&pairs, from, sizeof(pairs));
  return bit_cast<f32v>(which == 0 ? pairs << 16 : pairs & 0xffff0000u);
}

template <int rows>
KHUB_INLINE void add_products(const float* x, int64_t x_stride, const f32v (&w)[kColumns], f32v (&sums)[rows][kColumns]) {
  for (int r = 0; r < rows; ++r) {
    const f32v row = load(x + r * x_stride);
    for (int c = 0; c < kColumns; ++c) sums[r][c] += row * w[c];
  }
}

// to[row * kColumns + column] += the dot products over `count` elements. Meanwhile it asks for the first `count` / share
// of the weights that come next, none if `share` is 0, as no prefetcher of the processor can guess in time what follows
// a short row; more often than there are lines, because one that is asked for while many are on their way is forgotten.
// A function of its own: inlined into one with all the others it leaves the compiler no registers for the sums.
template <int share, int rows, class T>
__attribute__((noinline)) static void multiply(const WideRows& x, const Columns<T>& weights, int64_t count,
                                               const Columns<T>& next, float* to) {
  constexpr int kShare = share > 0 ? share : 1;
  f32v partial[rows][kColumns] = {};
  int64_t k = 0;
  for (; k + kUnrolled * kLanes <= count; k += kUnrolled * kLanes) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnrolled; ++u) {
      for (int c = 0; share > 0 && c < kColumns; ++c) {
        __builtin_prefetch(next.rows[c] + k / kShare + u * kLanes / kShare);
      }
      f32v w[kColumns];
      for (int c = 0; c < kColumns; ++c) w[c] = load_of_two(weights.rows[c] + k + u / 2 * 2 * kLanes, u % 2);
      add_products<rows>(x.values + k + u * kLanes, x.stride, w, partial);
    }
  }
  for (; k + kLanes <= count; k += kLanes) {
    f32v w[kColumns];
    for (int c = 0; c < kColumns; ++c) w[c] = load(weights.rows[c] + k);
    add_products<rows>(x.values + k, x.stride, w, partial);
  }
  f32v all[kSums] = {};
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 3
    for (int c = 0; c < kColumns; ++c) {
      all[r * kColumns + c] = partial[r][c];
      if (k < count) {
        const f32v row = load_part(x.values + r * x.stride + k, count - k);
        all[r * kColumns + c] += row * load_part(weights.rows[c] + k, count - k);
      }
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < rows * kColumns; i += 8) {
    store(to + i, load(to + i) + sums(all + i));
  }
}

// The first `rows` rows of x, at most kRows.
template <int share, class T>
static void multiply_rows(const WideRows& x, int64_t rows, const Columns<T>& weights, int64_t count,
                          const Columns<T>& next, float* to) {
  switch (rows) {
    case 1: return multiply<share, 1>(x, weights, count, next, to);
    case 2: return multiply<share, 2>(x, weights, count, next, to);
    case 3: return multiply<share, 3>(x, weights, count, next, to);
    default: return multiply<share, kRows>(x, weights, count, next, to);
  }
}

// All rows of x, from channel k on. The weights that come next are asked for evenly over the time that these take: in
// two halves by the first two turns, or by the only one.
template <class T>
static void multiply_columns(const Linear& q, const WideRows& x, int64_t k, const Columns<T>& weights, int64_t count,
                             const Columns<T>& next, float* sums, int64_t sums_stride) {
  for (int64_t m = 0; m < q.m; m += kRows, sums += sums_stride) {
    const WideRows rows = {x.values + m * x.stride + k, x.stride};
    if (q.m <= kRows) {
      multiply_rows<1>(rows, q.m, weights, count, next, sums);
    } else if (m < 2 * kRows) {
      Columns<T> half = next;
      for (int c = 0; c < kColumns; ++c) half.rows[c] += m / kRows * (count / 2);
      multiply_rows<2>(rows, q.m - m, weights, count, half, sums);
    } else {
      multiply_rows<0>(rows, q.m - m, weights, count, next, sums);
    }
  }
}

template <class T>
static void linear_tiles(const Linear& q, const WideRows& x, int64_t begin, int64_t end) {
  static_assert(kTileRows % kColumns == 0, "a tile is whole columns");
  constexpr int64_t kGroup = kTileRows / kColumns * kSums;  // sums of kRows rows of x
  std::vector<float> sums(size_t((q.m + kRows - 1) / kRows * kGroup));
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kTileRows, last = std::min(first + kTileRows, q.n);
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t k = 0; k < q.k; k += kStretch) {
      Columns<T> weights = columns_at<T>(q, first, k);
      for (int64_t n = first; n < last; n += kColumns) {
        const bool wraps = n + kColumns >= last, ends = k + kStretch >= q.k;
        const Columns<T> next = !wraps ? columns_at<T>(q, n + kColumns, k)
                                       : columns_at<T>(q, ends ? last : first, ends ? 0 : k + kStretch);
        multiply_columns(q, x, k, weights, std::min(kStretch, q.k - k), next, &sums[size_t((n - first) / kColumns * kSums)],
                         kGroup);
        weights = next;
      }
    }
    for (int64_t m = 0; m < q.m; ++m) {
      T* out = static_cast<T*>(q.out) + m * q.out_stride;
      const float* row = &sums[size_t(m / kRows * kGroup + m % kRows * kColumns)];
      for (int64_t n = first; n < last; ++n) {
        const float bias = q.bias ? khub::to_float(static_cast<const T*>(q.bias)[n]) : 0.0f;
        khub::from_float(row[(n - first) / kColumns * kSums + (n - first) % kColumns] + bias, out + n);
      }
    }
  }
}

static void linear(const Linear& q, const WideRows& x, int64_t begin, int64_t end) {
  switch (q.dtype) {
    case DType::f32: return linear_tiles<float>(q, x, begin, end);
    case DType::f16: return linear_tiles<Half>(q, x, begin, end);
    case DType::bf16: return linear_tiles<BFloat16>(q, x, begin, end);
  }
}
