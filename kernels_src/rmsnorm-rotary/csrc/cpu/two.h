// Two vectors of lanes at a time, in the order that costs least. Included inside a namespace after lanes.h.

// 2 * kLanes neighbours. Of bfloat16 `a` has the even ones and `b` the odd ones, which a shift and a mask take apart and
// put together; of the other dtypes `a` has the first and `b` the second half.
struct Two {
  f32v a, b;
};

static constexpr int64_t kTwo = 2 * kLanes;

KHUB_INLINE Two operator+(Two x, Two y) { return {x.a + y.a, x.b + y.b}; }
KHUB_INLINE Two operator-(Two x, Two y) { return {x.a - y.a, x.b - y.b}; }
KHUB_INLINE Two operator*(Two x, Two y) { return {x.a * y.a, x.b * y.b}; }
KHUB_INLINE Two operator*(Two x, float by) { return {x.a * by, x.b * by}; }

// Calls body(offset, count) over `size` elements, two whole vectors at a time first.
template <class Body>
KHUB_INLINE void for_twos(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + kTwo <= size; i += kTwo) body(i, kTwo);
  if (i < size) body(i, size - i);
}

// The first and the second half, whatever the dtype.
template <class T>
KHUB_INLINE Two load_halves(const T* from) {
  return {load(from), load(from + kLanes)};
}

template <class T>
KHUB_INLINE Two load_two(const T* from) {
  return load_halves(from);
}

KHUB_INLINE Two load_two(const BFloat16* from) {
  u32v bits;
  std::memcpy(&bits, from, sizeof(bits));
  return {bit_cast<f32v>(bits << 16), bit_cast<f32v>(bits & 0xffff0000u)};
}

template <class T>
KHUB_INLINE void store_two(T* to, const Two& x) {
  store(to, x.a);
  store(to + kLanes, x.b);
}

// In the upper half of each lane. A NaN must have zeros in the lower one, or the sum could carry it to a number: one
// that came from bfloat16 has, and one that arithmetic made.
KHUB_INLINE u32v rounded_up(f32v x) {
  const u32v bits = bit_cast<u32v>(x);
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

KHUB_INLINE void store_two(BFloat16* to, const Two& x) {
  const u32v bits = (rounded_up(x.a) >> 16) | (rounded_up(x.b) & 0xffff0000u);
  std::memcpy(to, &bits, sizeof(bits));
}

// The first `count` (at most kTwo) elements, then zeros.
template <class T>
struct Padded {
  T elements[kTwo] = {};

  __attribute__((always_inline)) Padded(const T* from, int64_t count) { std::memcpy(elements, from, size_t(count) * sizeof(T)); }
};

template <class T>
KHUB_INLINE Two load_halves(const T* from, int64_t count) {
  return count == kTwo ? load_halves(from) : load_halves(Padded<T>(from, count).elements);
}

template <class T>
KHUB_INLINE Two load_two(const T* from, int64_t count) {
  return count == kTwo ? load_two(from) : load_two(Padded<T>(from, count).elements);
}

template <class T>
KHUB_INLINE void store_two(T* to, const Two& x, int64_t count) {
  if (count == kTwo) return store_two(to, x);
  T padded[kTwo];
  store_two(padded, x);
  std::memcpy(to, padded, size_t(count) * sizeof(T));
}

#if KHUB_LANES == 16
static constexpr i32v kEven = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
static constexpr i32v kLow = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
#else
static constexpr i32v kEven = {0, 2, 4, 6, 8, 10, 12, 14};
static constexpr i32v kLow = {0, 8, 1, 9, 2, 10, 3, 11};
#endif

// Halves as the even and the odd ones, and back.
KHUB_INLINE Two apart(Two x) { return {__builtin_shuffle(x.a, x.b, kEven), __builtin_shuffle(x.a, x.b, kEven + 1)}; }

KHUB_INLINE Two together(Two x) {
  return {__builtin_shuffle(x.a, x.b, kLow), __builtin_shuffle(x.a, x.b, kLow + kLanes / 2)};
}

// `count` (at most kLanes) pairs of neighbours: the first of each and the second of each, whatever the dtype.
template <class T>
KHUB_INLINE Two load_pairs(const T* from, int64_t count) {
  return apart(load_two(from, 2 * count));
}

KHUB_INLINE Two load_pairs(const BFloat16* from, int64_t count) { return load_two(from, 2 * count); }

template <class T>
KHUB_INLINE void store_pairs(T* to, Two x, int64_t count) {
  store_two(to, together(x), 2 * count);
}

KHUB_INLINE void store_pairs(BFloat16* to, Two x, int64_t count) { store_two(to, x, 2 * count); }
