// x as fixed point, the results as x's own type, and which instruction set does the work between.
#include "matmul_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace khub::cpu {

namespace {

const Loops& loops() {
  switch (processor()) {
    case Processor::amx:
    case Processor::vnni: return loops_vnni;
    case Processor::avx2: return loops_avx2;
    default: return loops_baseline;
  }
}

Processor find_processor() {
#if defined(KHUB_EMULATE_AMX)
  return loops_amx.sum_tile ? Processor::amx : Processor::vnni;
#elif defined(__x86_64__)
  __builtin_cpu_init();
  if (loops_vnni.sum_tile && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")) {
    return may_use_tile_registers() ? Processor::amx : Processor::vnni;
  }
  if (loops_avx2.sum_tile && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return Processor::avx2;
  }
#endif
  return Processor::baseline;
}

// Values in the order in which they meet their weights. Eight words of 32 bits unpack together, each to pairs: of
// int4 nibbles j and j + 4 are the j-th pair of a word, of int8 bytes j and j + 2.
template <int kBits>
void place(const int16_t* from, int64_t width, int16_t* to) {
  constexpr int kPerWord = 32 / kBits, kPairs = kPerWord / 2;
  for (int64_t unit = 0; unit < width; unit += 8 * kPerWord) {
    for (int word = 0; word < 8; ++word) {
      for (int i = 0; i < kPerWord; ++i) {
        to[unit + i % kPairs * 16 + word * 2 + i / kPairs] = from[unit + word * kPerWord + i];
      }
    }
  }
}

// A row's digits in two bytes each, as tile registers take them.
void place_bytes(const int16_t* from, const Digits& d, int64_t row) {
  const int64_t apart = d.abreast * kNibbles;
  int8_t* to = d.row_at(row, 2);
  for (int64_t unit = 0; unit < d.width; unit += kNibbles, to += 2 * apart) {
    for (int64_t i = 0; i < kNibbles; ++i) {
      to[i] = int8_t(from[unit + i]);
      to[apart + i] = int8_t(from[unit + i] >> 8);
    }
  }
}

// The nearest whole number, for less than 2^22.
float nearest(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

constexpr float kFirst = 127.0f * 258.0f;  // the largest digit: what has 8 bits is a whole number of these too
constexpr float kSecond = 65000.0f;  // what half of it is, and a rounding more, fits a digit

// One step of a row: `count` floats as digits, `second` null where one is enough. Returns what a first digit of 1
// stands for; a second digit's is a kSecond-th of it.
float split(const float* x, int64_t count, int16_t* first, int16_t* second) {
  float most = 0.0f, wrong = 0.0f;
  for (int64_t k = 0; k < count; ++k) {
    const float magnitude = std::fabs(x[k]);
    most = magnitude > most ? magnitude : most;
    wrong += x[k] - x[k];  // 0, and NaN for what is not finite
  }
  if (wrong != 0.0f) return NAN;
  const float unit = most / kFirst;
  if (unit < 0x1p-126f) {  // too small to divide by: nothing, or as good as
    std::fill(first, first + count, int16_t(0));
    if (second) std::fill(second, second + count, int16_t(0));
    return 0.0f;
  }
  const float inverse = kFirst / most;
  for (int64_t k = 0; k < count; ++k) {
    const float scaled = x[k] * inverse, whole = nearest(scaled);
    first[k] = int16_t(int32_t(whole));
    if (second) second[k] = int16_t(int32_t(nearest((scaled - whole) * kSecond)));
  }
  return unit;
}

template <class T>
void fill(const QuantizedMatmul& q, Digits& d, int64_t begin, int64_t end) {
  const int64_t per_row = d.rows / q.m;
  std::vector<int16_t> digits(size_t(2 * d.width));
  for (int64_t m = begin; m < end; ++m) {
    const T* from = static_cast<const T*>(q.x) + m * q.x_stride;
    for (int64_t s = 0; s < d.steps; ++s) {
      const int64_t k = s * d.step, count = std::min(d.step, q.k - k);
      float x[kStep];
      for (int64_t i = 0; i < count; ++i) x[i] = to_float(from[k + i]);
      int16_t* first = digits.data() + k;
      const float unit = split(x, count, first, per_row > 1 ? first + d.width : nullptr);
      for (int64_t digit = 0; digit < per_row; ++digit) {
        const int64_t at = (digit * q.m + m) * d.steps + s;
        int32_t sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += first[digit * d.width + i];
        d.scales[at] = digit ? unit / kSecond : unit;
        d.sums[at] = sum;
      }
    }
    for (int64_t digit = 0; digit < per_row; ++digit) {
      const int64_t row = digit * q.m + m;
      const int16_t* natural = digits.data() + digit * d.width;
      if (d.abreast > 1) {
        place_bytes(natural, d, row);
        continue;
      }
      int16_t* to = d.values + row * d.width;
      q.bits == 4 ? place<4>(natural, d.width, to) : place<8>(natural, d.width, to);
    }
  }
}

template <class T>
void write(const QuantizedMatmul& q, const Digits& d, int64_t first, const float* sums) {
  const int64_t rows = std::min(kTileRows, q.n - first);
  for (int64_t m = 0; m < q.m; ++m) {
    T* out = static_cast<T*>(q.out) + m * q.out_stride + first;
    for (int64_t r = 0; r < rows; ++r) {
      float sum = sums[m * kTileRows + r];
      if (d.rows > q.m) sum += sums[(q.m + m) * kTileRows + r];
      from_float(sum + (q.bias ? to_float(static_cast<const T*>(q.bias)[first + r]) : 0.0f), out + r);
    }
  }
}

// Tiles of panels as rows, for the loops that read those.
class TileRows {
 public:
  // The same product with weight rows [first, first + kTileRows) alone.
  QuantizedMatmul of(const QuantizedMatmul& q, int64_t first) {
    QuantizedMatmul rows = q;
    rows.panels = false;
    rows.n = std::min(kTileRows, q.n - first);
    rows.weight = turned(q.weight, first, rows.n, q.row_bytes / 4, 4, weight_);
    rows.scales = turned(q.scales, first, rows.n, q.groups, q.scale_dtype == DType::f32 ? 4 : 2, scales_);
    if (q.zeros) rows.zeros = turned(q.zeros, first, rows.n, q.groups, 1, zeros_);
    return rows;
  }

 private:
  // [n / kPanel, count, kPanel] pieces of `size` bytes, from panel `first` / kPanel on, as [n, count].
  static const uint8_t* turned(const void* from, int64_t first, int64_t n, int64_t count, int64_t size,
                               std::vector<uint8_t>& to) {
    to.resize(size_t(n * count * size));
    for (int64_t r = 0; r < n; ++r) {
      const uint8_t* panel = static_cast<const uint8_t*>(from) + (first + r) / kPanel * kPanel * count * size;
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(to.data() + (r * count + i) * size, panel + (i * kPanel + r % kPanel) * size, size_t(size));
      }
    }
    return to.data();
  }

  std::vector<uint8_t> weight_, scales_, zeros_;
};

}  // namespace

Processor processor() {
  static const Processor found = find_processor();
  return found;
}

Digits make_digits(const QuantizedMatmul& q) {
  Digits d;
  d.in_bytes = q.bits != 4 || !loops().fill_bytes ? 0 : q.coarse ? 1 : q.dtype == DType::f32 ? 3 : 2;
  d.rows = q.dtype == DType::f32 && !d.in_bytes && !q.coarse ? 2 * q.m : q.m;
  d.step = q.groups == 1 ? kStep : std::min(q.group_size, kStep);
  d.steps = (q.k + d.step - 1) / d.step;
  const int64_t turn = d.in_bytes ? std::max(d.step, kNibbles) : 64;  // of channels that are multiplied in one go
  d.width = (q.k + turn - 1) / turn * turn;
  d.abreast = processor() == Processor::amx && d.rows >= kAbreast ? kAbreast : 1;
  const int64_t rows = (d.rows + d.abreast - 1) / d.abreast * d.abreast;  // what is past the last is 0
  const int64_t values = d.in_bytes ? rows * d.width * d.in_bytes / 2 : rows * d.width;
  d.memory.resize(size_t(values + 32));
  d.values = on_line(d.memory.data());
  d.bytes = reinterpret_cast<int8_t*>(d.values);
  d.scales.resize(size_t(d.rows * d.steps));
  d.sums.resize(size_t(d.rows * d.steps));
  return d;
}

void fill_digits(const QuantizedMatmul& q, Digits& digits, int64_t begin, int64_t end) {
  if (digits.in_bytes) return loops().fill_bytes(q, digits, begin, end);
  switch (q.dtype) {
    case DType::f32: return fill<float>(q, digits, begin, end);
    case DType::f16: return fill<Half>(q, digits, begin, end);
    case DType::bf16: return fill<BFloat16>(q, digits, begin, end);
  }
}

Workspace::Workspace(const Digits& d)
    : floats(new float[size_t(kTileRows * (d.steps + d.rows))]),
      zeros(new int32_t[size_t(kTileRows * d.steps)]),
      weights(new int16_t[size_t(kTileRows * kUnpacked + 32)]) {}

void matmul(const QuantizedMatmul& q, const Digits& d, const Workspace& own, int64_t begin, int64_t end) {
  const Loops& from = d.abreast > 1 ? loops_amx : loops();
  const SumTile sum_tile = d.in_bytes ? from.sum_nibbles_tile : from.sum_tile;
  float* const floats = own.floats.get();
  const Scratch scratch = {floats, own.zeros.get(), on_line(own.weights.get()), floats + kTileRows * d.steps};
  TileRows tile_rows;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kTileRows;
    if (q.panels && !d.in_bytes) {
      sum_tile(tile_rows.of(q, first), d, 0, scratch);
    } else {
      sum_tile(q, d, first, scratch);
    }
    switch (q.dtype) {
      case DType::f32: write<float>(q, d, first, scratch.sums); break;
      case DType::f16: write<Half>(q, d, first, scratch.sums); break;
      case DType::bf16: write<BFloat16>(q, d, first, scratch.sums); break;
    }
  }
}

}  // namespace khub::cpu
