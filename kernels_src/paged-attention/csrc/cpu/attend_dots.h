// The two products of attention, for one or two rows of queries over a chunk of keys: logits = query . key and
// output += weights . value, read from the cache's own type. Included inside a namespace after fp8_lanes.h.
//
// Roofline: a key or value element is loaded once for every two rows and multiplied once for each; with the
// group's rows at hand the loop is bound by memory up to 4 query heads for each KV head, by FMAs above.

static constexpr int64_t kStep = 2 * kLanes;  // elements that are loaded together
static constexpr int64_t kGroup = 8;          // keys that every head has its turn at before the next come

// 2 * kLanes elements, in the order `to_lanes` says.
KHUB_INLINE void load_two(const float* from, f32v* to) {
  to[0] = load(from);
  to[1] = load(from + kLanes);
}

KHUB_INLINE void load_two(const khub::Half* from, f32v* to) {
  to[0] = load(from);
  to[1] = load(from + kLanes);
}

// A bfloat16 is the upper half of a float: the even elements, then the odd ones, cost no shuffle.
KHUB_INLINE void load_two(const khub::BFloat16* from, f32v* to) {
  u32v bits;
  std::memcpy(&bits, from, sizeof(bits));
  to[0] = bit_cast<f32v>(bits << 16);
  to[1] = bit_cast<f32v>(bits & 0xffff0000u);
}

KHUB_INLINE void load_two(const khub::E4M3* from, f32v* to) { load_pairs(from, to); }
KHUB_INLINE void load_two(const khub::E5M2* from, f32v* to) { load_pairs(from, to); }

template <class T>
static constexpr bool kEvenThenOdd = std::is_same_v<T, khub::BFloat16> || sizeof(T) == 1;

// Where element d of a head stands among its floats here.
template <class T>
KHUB_INLINE int64_t to_lanes(int64_t d) {
  if (!kEvenThenOdd<T>) return d;
  const int64_t i = d % kStep;
  return d - i + (i % 2) * kLanes + i / 2;
}

// What comes later, in the order of memory: a group of slots, of which one head's turn asks for its share.
struct Ahead {
  const char* const* slots;  // [kGroup], or null
  int64_t slot_bytes;
  int64_t start;  // of the share

  const char* at(int64_t offset) const {
    if (!slots) return nullptr;
    const int64_t slot = (start + offset) / slot_bytes;
    return slots[slot < kGroup ? slot : kGroup - 1] + (start + offset) % slot_bytes;
  }
};

// Asks for `count` bytes of what comes later. A few lines at a time between products: a burst of requests fills
// the queue of misses, and the core waits.
KHUB_INLINE void ask(const char* from, int64_t count) {
  if (!from) return;
  for (int64_t at = 0; at < count; at += 64) __builtin_prefetch(from + at, 0, 2);
}

// scores[r * kChunk + k] of kRows rows for the keys k of a group, in steps of which each meets [begin, end).
template <int kRows, class T>
static void dot_group(const float* query, const T* const* keys, int64_t offset, const Ahead& ahead,
                           int64_t stride, int64_t width, int64_t begin, int64_t end, float* scores) {
  constexpr int kKeys = 8 / kRows;
  for (int64_t k = 0; k < kGroup; k += kKeys) {
    if (k + kKeys <= begin || k >= end) continue;
    f32v partial[8] = {};
    const char* later = ahead.at(k * width * int64_t(sizeof(T)));
    for (int64_t d = 0; d < width; d += kStep) {
      f32v q[kRows][2];
      for (int r = 0; r < kRows; ++r) {
        q[r][0] = load(query + r * stride + d);
        q[r][1] = load(query + r * stride + d + kLanes);
      }
      ask(later ? later + d * kKeys * int64_t(sizeof(T)) : nullptr, kStep * kKeys * int64_t(sizeof(T)));
      for (int i = 0; i < kKeys; ++i) {
        f32v key[2];
        load_two(keys[k + i] + offset + d, key);
        for (int r = 0; r < kRows; ++r) {
          partial[r * kKeys + i] += q[r][0] * key[0];
          partial[r * kKeys + i] += q[r][1] * key[1];
        }
      }
    }
    const f32x8 totals = sums(partial);
    for (int r = 0; r < kRows; ++r) {
      std::memcpy(scores + r * kChunk + k, reinterpret_cast<const float*>(&totals) + r * kKeys,
                  kKeys * sizeof(float));
    }
  }
}

// output[r][d ...] = output * correction[r] + sum over k of weights[r][k] * values[k][d ...], 2 * kPairs vectors.
// The group is summed on its own first: over a long context that keeps the rounding error of the sum small.
template <int kRows, int kPairs, class T>
KHUB_INLINE void add_values(const float* weights, const T* const* values, int64_t offset, const char* later,
                            int64_t begin, int64_t end, int64_t d, const float* correction, float* output,
                            int64_t stride) {
  f32v partial[kRows][2 * kPairs] = {};
  for (int64_t k = begin; k < end; ++k) {
    constexpr int64_t kBytes = kPairs * kStep * int64_t(sizeof(T));
    ask(later ? later + k * kBytes : nullptr, kBytes);
    f32v weight[kRows];
    for (int r = 0; r < kRows; ++r) weight[r] = splat(weights[r * kChunk + k]);
    for (int p = 0; p < kPairs; ++p) {
      f32v value[2];
      load_two(values[k] + offset + d + p * kStep, value);
      for (int r = 0; r < kRows; ++r) {
        partial[r][2 * p] += weight[r] * value[0];
        partial[r][2 * p + 1] += weight[r] * value[1];
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 2 * kPairs; ++v) {
      float* to = output + r * stride + d + v * kLanes;
      store(to, load(to) * correction[r] + partial[r][v]);
    }
  }
}

template <int kRows, class T>
static void weigh_group(const float* weights, const T* const* values, int64_t offset, const Ahead& ahead,
                             int64_t begin, int64_t end, const float* correction, float* output, int64_t stride,
                             int64_t width) {
  constexpr int kPairs = 4 / kRows;
  int64_t d = 0;
  for (; d + kPairs * kStep <= width; d += kPairs * kStep) {
    const char* later = ahead.at(d * kGroup * int64_t(sizeof(T)));
    add_values<kRows, kPairs>(weights, values, offset, later, begin, end, d, correction, output, stride);
  }
  for (; d < width; d += kStep) {
    add_values<kRows, 1>(weights, values, offset, nullptr, begin, end, d, correction, output, stride);
  }
}
