// Weights are unpacked to float32 a few rows and a stretch of k at a time, small enough for the nearest
// caches, and multiplied with every row of x. Included inside a namespace after lanes.h, once per instruction
// set.

typedef int8_t i8x8 __attribute__((vector_size(8)));
typedef uint8_t u8x8 __attribute__((vector_size(8)));

static constexpr int64_t kStretch = 512;  // of k; a multiple of every group size but k
static constexpr int64_t kColumns = 4;    // weight rows that share a load of x

static float load_scale(const QuantizedMatmul& q, int64_t index) {
  switch (q.scale_dtype) {
    case DType::f32: return static_cast<const float*>(q.scales)[index];
    case DType::f16: return khub::to_float(static_cast<const Half*>(q.scales)[index]);
    case DType::bf16: return khub::to_float(static_cast<const BFloat16*>(q.scales)[index]);
  }
  return 0.0f;
}

// Eight bytes of a weight row, zeros past its end.
template <class Bytes>
KHUB_INLINE Bytes load_bytes(const uint8_t* row, int64_t at, int64_t row_bytes) {
  Bytes bytes{};
  if (at + 8 <= row_bytes) {  // a copy of a constant size is one load
    std::memcpy(&bytes, row + at, 8);
  } else {
    std::memcpy(&bytes, row + at, size_t(row_bytes - at));
  }
  return bytes;
}

// Elements [begin, end) of weight row n, times their scales; both are multiples of 16.
static void unpack(const QuantizedMatmul& q, int64_t n, int64_t begin, int64_t end, float* to) {
  const int64_t row_bytes = q.row_bytes;
  const uint8_t* row = q.weight + n * row_bytes;
  for (int64_t k = begin; k < end;) {
    const int64_t group = k / q.group_size;
    const int64_t group_end = group + 1 < q.groups ? std::min(end, (group + 1) * q.group_size) : end;
    const float scale = load_scale(q, n * q.groups + group);
    if (q.bits == 8) {
      for (; k < group_end; k += kLanes) {
        const i8x8 bytes = k < row_bytes ? load_bytes<i8x8>(row, k, row_bytes) : i8x8{};
        store(to + k - begin, __builtin_convertvector(__builtin_convertvector(bytes, i32x8), f32x8) * scale);
      }
    } else {
      const int32_t zero = q.zeros ? q.zeros[n * q.groups + group] : 8;
      for (; k < group_end; k += 2 * kLanes) {
        const i32x8 bytes = __builtin_convertvector(load_bytes<u8x8>(row, k / 2, row_bytes), i32x8);
        store(to + k - begin, __builtin_convertvector((bytes & 15) - zero, f32x8) * scale);
        store(to + k - begin + kLanes, __builtin_convertvector((bytes >> 4) - zero, f32x8) * scale);
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
      for (int64_t r = 0; r < rows; ++r) unpack(q, first + r, k, k + count, weights.data() + r * kStretch);
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
