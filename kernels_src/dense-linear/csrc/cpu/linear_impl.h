// Dot products of a few rows of x with a few weight rows at a time, so that each load feeds several products.
// The weights are read where they are, once, in order; what is read is widened in registers. Included inside
// a namespace after lanes.h, once per instruction set.

static constexpr int64_t kStretch = 1024;  // of k: kTileRows of it stay near while all of x passes by
static constexpr int kRows = 4;            // rows of x,
static constexpr int kColumns = 3;         // and weight rows, that are multiplied together: 12 sums in registers

// sums[row][column] += the dot products over `count` elements. `fetch`: ask for the weights that come next,
// which no prefetcher of the processor can guess in time at the end of a short row. A function of its own: inlined
// into one with all the others it leaves the compiler no registers for the sums.
template <bool fetch, int rows, int columns, class T>
__attribute__((noinline)) static void multiply(const float* x, int64_t x_stride, const T* weight,
                                               int64_t weight_stride, int64_t count, float* sums) {
  f32v partial[rows][columns] = {};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    f32v w[columns];
    for (int c = 0; c < columns; ++c) {
      w[c] = load(weight + c * weight_stride + k);
      if (fetch) __builtin_prefetch(weight + (c + columns) * weight_stride + k);
    }
    for (int r = 0; r < rows; ++r) {
      const f32v row = load(x + r * x_stride + k);
      for (int c = 0; c < columns; ++c) partial[r][c] += row * w[c];
    }
  }
  if (k < count) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const f32v row = load_part(x + r * x_stride + k, count - k);
#pragma GCC unroll 3
      for (int c = 0; c < columns; ++c) {
        partial[r][c] += row * load_part(weight + c * weight_stride + k, count - k);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 3
    for (int c = 0; c < columns; ++c) sums[r * kTileRows + c] += sum(partial[r][c]);
  }
}

template <bool fetch, int rows, class T>
static void multiply_columns(const float* x, int64_t x_stride, const T* weight, int64_t weight_stride,
                             int64_t columns, int64_t count, float* sums) {
  int64_t c = 0;
  for (; c + kColumns <= columns; c += kColumns) {
    multiply<fetch, rows, kColumns>(x, x_stride, weight + c * weight_stride, weight_stride, count, sums + c);
  }
  for (; c < columns; ++c) {
    multiply<fetch, rows, 1>(x, x_stride, weight + c * weight_stride, weight_stride, count, sums + c);
  }
}

template <bool fetch, class T>
static void multiply_rows(const float* x, int64_t x_stride, const T* weight, int64_t weight_stride,
                          int64_t rows, int64_t columns, int64_t count, float* sums) {
  switch (rows) {
    case 1: return multiply_columns<fetch, 1>(x, x_stride, weight, weight_stride, columns, count, sums);
    case 2: return multiply_columns<fetch, 2>(x, x_stride, weight, weight_stride, columns, count, sums);
    case 3: return multiply_columns<fetch, 3>(x, x_stride, weight, weight_stride, columns, count, sums);
    default: return multiply_columns<fetch, kRows>(x, x_stride, weight, weight_stride, columns, count, sums);
  }
}

template <class T>
static void linear_tiles(const Linear& q, int64_t begin, int64_t end) {
  std::vector<float> sums(size_t(q.m * kTileRows));
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kTileRows, columns = std::min(kTileRows, q.n - first);
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t k = 0; k < q.k; k += kStretch) {
      const T* weight = static_cast<const T*>(q.weight) + first * q.weight_stride + k;
      const int64_t count = std::min(kStretch, q.k - k);
      for (int64_t m = 0; m < q.m; m += kRows) {
        const float* x = q.x + m * q.x_stride + k;
        float* to = &sums[size_t(m * kTileRows)];
        if (m == 0) {
          multiply_rows<true>(x, q.x_stride, weight, q.weight_stride, q.m, columns, count, to);
        } else {
          multiply_rows<false>(x, q.x_stride, weight, q.weight_stride, q.m - m, columns, count, to);
        }
      }
    }
    for (int64_t m = 0; m < q.m; ++m) {
      T* out = static_cast<T*>(q.out) + m * q.out_stride + first;
      for (int64_t c = 0; c < columns; ++c) {
        const float bias = q.bias ? khub::to_float(static_cast<const T*>(q.bias)[first + c]) : 0.0f;
        khub::from_float(sums[size_t(m * kTileRows + c)] + bias, out + c);
      }
    }
  }
}

static void linear(const Linear& q, int64_t begin, int64_t end) {
  switch (q.dtype) {
    case DType::f32: return linear_tiles<float>(q, begin, end);
    case DType::f16: return linear_tiles<Half>(q, begin, end);
    case DType::bf16: return linear_tiles<BFloat16>(q, begin, end);
  }
}
