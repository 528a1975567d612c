// Weights are unpacked to float32 a few rows and a stretch of k at a time, small enough for the nearest
// caches, and multiplied with every row of x. Included inside a namespace after lanes.h, once per instruction
// set.

static constexpr int64_t kStretch = 512;  // of k; whole groups, unless there is only one
static constexpr int64_t kColumns = 4;    // weight rows that share a load of x

static float load_scale(const QuantizedMatmul& q, int64_t index) {
  switch (q.scale_dtype) {
    case DType::f32: return static_cast<const float*>(q.scales)[index];
    case DType::f16: return khub::to_float(static_cast<const Half*>(q.scales)[index]);
    case DType::bf16: return khub::to_float(static_cast<const BFloat16*>(q.scales)[index]);
  }
  return 0.0f;
}

// Eight words of a weight row, zeros past its end.
KHUB_INLINE i32x8 load_words(const uint8_t* row, int64_t at, int64_t row_bytes) {
  i32x8 words{};
  if (at + 32 <= row_bytes) {  // a copy of a constant size is one load
    std::memcpy(&words, row + at, 32);
  } else if (at < row_bytes) {
    std::memcpy(&words, row + at, size_t(row_bytes - at));
  }
  return words;
}

// Elements [begin, end) of an int8 weight row, times its scale; both are whole numbers of eight words. Lane l
// of the i-th vector is byte i of word l: 32-bit shifts unpack far faster than bytes are widened.
static void unpack_int8(const QuantizedMatmul& q, int64_t n, int64_t begin, int64_t end, float* to) {
  const float scale = load_scale(q, n);
  for (int64_t k = begin; k < end; k += 32) {
    const i32x8 words = load_words(q.weight + n * q.row_bytes, k, q.row_bytes);
    for (int i = 0; i < 4; ++i, to += kLanes) {
      store(to, __builtin_convertvector((words << (24 - 8 * i)) >> 24, f32x8) * scale);
    }
  }
}

// The same for int4, where lane l of the i-th vector is nibble i of word l. Groups are 32 (then the eight
// words have two of them) or a whole number of eight words, or there is only one.
static void unpack_int4(const QuantizedMatmul& q, int64_t n, int64_t begin, int64_t end, float* to) {
  for (int64_t k = begin; k < end;) {
    const int64_t first = k / q.group_size;
    const int64_t second = q.group_size == 32 ? std::min(first + 1, q.groups - 1) : first;
    const int64_t span_end = q.group_size == 32 ? k + 64 : q.groups == 1 ? end : (first + 1) * q.group_size;
    const float a = load_scale(q, n * q.groups + first), b = load_scale(q, n * q.groups + second);
    const f32x8 scale = {a, a, a, a, b, b, b, b};
    const int32_t c = q.zeros ? q.zeros[n * q.groups + first] : 8;
    const int32_t d = q.zeros ? q.zeros[n * q.groups + second] : 8;
    const i32x8 zero = {c, c, c, c, d, d, d, d};
    for (; k < std::min(span_end, end); k += 64) {
      const i32x8 words = load_words(q.weight + n * q.row_bytes, k / 2, q.row_bytes);
      for (int i = 0; i < 8; ++i, to += kLanes) {
        store(to, __builtin_convertvector(((words >> (4 * i)) & 15) - zero, f32x8) * scale);
      }
    }
  }
}

// sums[row][column] += the dot products of kRows rows of x with kColumns unpacked weight rows.
template <int kRows>
static void multiply(const float* x, int64_t x_stride, const float* weights, int64_t count, float* sums) {
  f32x8 partial[kRows][kColumns] = {};
  for (int64_t k = 0; k < count; k += kLanes) {
    f32x8 w[kColumns];
    for (int64_t c = 0; c < kColumns; ++c) w[c] = load(weights + c * kStretch + k);
    for (int r = 0; r < kRows; ++r) {
      const f32x8 row = load(x + r * x_stride + k);
      for (int64_t c = 0; c < kColumns; ++c) partial[r][c] += row * w[c];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kColumns; ++c) sums[r * kTileRows + c] += sum(partial[r][c]);
  }
}

template <class T>
static void matmul_tiles(const QuantizedMatmul& q, const float* widened, int64_t begin, int64_t end) {
  const int64_t width = widened_width(q);
  std::vector<float> weights(kTileRows * kStretch), sums(q.m * kTileRows);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kTileRows, rows = std::min(kTileRows, q.n - first);
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t k = 0; k < width; k += kStretch) {
      const int64_t count = std::min(kStretch, width - k);
      for (int64_t r = 0; r < rows; ++r) {
        float* to = weights.data() + r * kStretch;
        if (q.bits == 8) {
          unpack_int8(q, first + r, k, k + count, to);
        } else {
          unpack_int4(q, first + r, k, k + count, to);
        }
      }
      int64_t m = 0;
      for (; m + 2 <= q.m; m += 2) {
        for (int64_t r = 0; r < rows; r += kColumns) {
          multiply<2>(widened + m * width + k, width, weights.data() + r * kStretch, count,
                      &sums[m * kTileRows + r]);
        }
      }
      for (; m < q.m; ++m) {
        for (int64_t r = 0; r < rows; r += kColumns) {
          multiply<1>(widened + m * width + k, width, weights.data() + r * kStretch, count,
                      &sums[m * kTileRows + r]);
        }
      }
    }
    for (int64_t m = 0; m < q.m; ++m) {
      T* out = static_cast<T*>(q.out) + m * q.out_stride + first;
      for (int64_t r = 0; r < rows; ++r) {
        const float bias = q.bias ? khub::to_float(static_cast<const T*>(q.bias)[first + r]) : 0.0f;
        khub::from_float(sums[m * kTileRows + r] + bias, out + r);
      }
    }
  }
}

static void matmul(const QuantizedMatmul& q, const float* widened, int64_t begin, int64_t end) {
  switch (q.dtype) {
    case DType::f32: return matmul_tiles<float>(q, widened, begin, end);
    case DType::f16: return matmul_tiles<Half>(q, widened, begin, end);
    case DType::bf16: return matmul_tiles<BFloat16>(q, widened, begin, end);
  }
}
