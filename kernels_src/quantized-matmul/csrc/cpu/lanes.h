// fp32 lanes in GCC's portable vectors: KHUB_LANES of them, 8 or 16. Included inside a namespace, once per
// instruction set, because a vector operation is lowered for the target of the function that spells it.
// KHUB_F16C says that the target converts float16 itself (F16C); its headers are included by then.
// A copy of this file is in every package of this tree, so that each package builds alone.

// Passing vectors to a real call would depend on the instruction set of the caller.
#undef KHUB_INLINE
#define KHUB_INLINE static inline __attribute__((always_inline))

static constexpr int64_t kLanes = KHUB_LANES;

typedef float f32v __attribute__((vector_size(4 * KHUB_LANES)));
typedef int32_t i32v __attribute__((vector_size(4 * KHUB_LANES)));
typedef uint32_t u32v __attribute__((vector_size(4 * KHUB_LANES)));
typedef uint16_t u16v __attribute__((vector_size(2 * KHUB_LANES)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));

template <class To, class From>
KHUB_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Subtracting 0 changes no value, not even -0, so that this is a broadcast and nothing else.
KHUB_INLINE f32v splat(float value) { return value - f32v{}; }

KHUB_INLINE f32v load(const float* from) {
  f32v lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

KHUB_INLINE u32v load_bits16(const void* from) {
  u16v bits;
  std::memcpy(&bits, from, sizeof(bits));
  return __builtin_convertvector(bits, u32v);
}

KHUB_INLINE f32v load(const khub::BFloat16* from) { return bit_cast<f32v>(load_bits16(from) << 16); }

#if defined(KHUB_F16C) && KHUB_LANES == 16
KHUB_INLINE f32v load(const khub::Half* from) {
  return bit_cast<f32v>(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
#elif defined(KHUB_F16C)
KHUB_INLINE f32v load(const khub::Half* from) {
  return bit_cast<f32v>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
#else
KHUB_INLINE f32v load(const khub::Half* from) {
  const u32v bits = load_bits16(from);
  const u32v sign = (bits & 0x8000u) << 16;
  const u32v magnitude = (bits & 0x7fffu) << 13;
  const u32v finite = bit_cast<u32v>(bit_cast<f32v>(magnitude) * 0x1p112f);
  const u32v special = bit_cast<u32v>(bit_cast<i32v>(magnitude) >= 0x0f800000);
  return bit_cast<f32v>(sign | finite | (special & 0x7f800000u));
}
#endif

// The first `count` (at most kLanes) elements, then zeros.
template <class T>
KHUB_INLINE f32v load_part(const T* from, int64_t count) {
  T padded[kLanes] = {};
  std::memcpy(padded, from, size_t(count) * sizeof(T));
  return load(padded);
}

KHUB_INLINE void store(float* to, f32v lanes) { std::memcpy(to, &lanes, sizeof(lanes)); }

KHUB_INLINE u32v select(i32v mask, u32v yes, u32v no) {
  return (bit_cast<u32v>(mask) & yes) | (~bit_cast<u32v>(mask) & no);
}

KHUB_INLINE void store_bits16(void* to, u32v bits) {
  const u16v narrow = __builtin_convertvector(bits, u16v);
  std::memcpy(to, &narrow, sizeof(narrow));
}

// These round as khub::from_float does; a NaN is one, whichever.
KHUB_INLINE void store(khub::BFloat16* to, f32v lanes) {
  const u32v bits = bit_cast<u32v>(lanes);
  const u32v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  store_bits16(to, select(lanes != lanes, (bits >> 16) | 0x40u, rounded));
}

#if defined(KHUB_F16C) && KHUB_LANES == 16
KHUB_INLINE void store(khub::Half* to, f32v lanes) {
  const __m256i half = _mm512_maskz_cvtps_ph(0xffff, bit_cast<__m512>(lanes), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), half);
}
#elif defined(KHUB_F16C)
KHUB_INLINE void store(khub::Half* to, f32v lanes) {
  const __m128i half = _mm256_cvtps_ph(bit_cast<__m256>(lanes), _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), half);
}
#else
KHUB_INLINE void store(khub::Half* to, f32v lanes) {
  const u32v bits = bit_cast<u32v>(lanes);
  const i32v magnitude = bit_cast<i32v>(bits & 0x7fffffffu);
  const u32v normal = (bit_cast<u32v>(magnitude) + 0xfffu + ((bits >> 13) & 1u) - 0x38000000u) >> 13;
  const u32v subnormal = bit_cast<u32v>(bit_cast<f32v>(magnitude) + 0.5f) - 0x3f000000u;
  u32v half = select(magnitude < 0x38800000, subnormal, normal);
  half = select(magnitude >= 0x477ff000, u32v{} + 0x7c00u, half);
  half = select(magnitude > 0x7f800000, u32v{} + 0x7e00u, half);
  store_bits16(to, ((bits >> 16) & 0x8000u) | half);
}
#endif

// Both halves of 16 lanes added; 8 lanes as they are.
KHUB_INLINE f32x8 fold(f32v v) {
#if KHUB_LANES == 16
  struct Halves {
    f32x8 low, high;
  };
  const Halves halves = bit_cast<Halves>(v);
  return halves.low + halves.high;
#else
  return v;
#endif
}

// In a fixed order, so that a sum is the same in every run.
KHUB_INLINE float sum(f32v lanes) {
  const f32x8 v = fold(lanes);
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

KHUB_INLINE f32x8 add_halves(f32x8 a, f32x8 b) {
  return __builtin_shuffle(a, b, i32x8{0, 1, 2, 3, 8, 9, 10, 11}) +
         __builtin_shuffle(a, b, i32x8{4, 5, 6, 7, 12, 13, 14, 15});
}

KHUB_INLINE f32x8 add_pairs(f32x8 a, f32x8 b) {
  return __builtin_shuffle(a, b, i32x8{0, 8, 1, 9, 4, 12, 5, 13}) +
         __builtin_shuffle(a, b, i32x8{2, 10, 3, 11, 6, 14, 7, 15});
}

KHUB_INLINE f32x8 add_quads(f32x8 a, f32x8 b) {
  return __builtin_shuffle(a, b, i32x8{0, 1, 8, 9, 4, 5, 12, 13}) +
         __builtin_shuffle(a, b, i32x8{2, 3, 10, 11, 6, 7, 14, 15});
}

// Lane i is sum(v[i]), in the same order.
KHUB_INLINE f32x8 sums(const f32v* v) {
  f32x8 halves[4];
  for (int i = 0; i < 4; ++i) halves[i] = add_halves(fold(v[i]), fold(v[i + 4]));
  return add_quads(add_pairs(halves[0], halves[1]), add_pairs(halves[2], halves[3]));
}

// to[i] = {from[0][i], from[1][i], ...}: rows and columns change places.
KHUB_INLINE void transpose(const f32x8* from, f32x8* to) {
  f32x8 pairs[8], quads[8];
  for (int i = 0; i < 4; ++i) {  // rows 2i and 2i + 1, in each half of the lanes
    pairs[2 * i] = __builtin_shuffle(from[2 * i], from[2 * i + 1], i32x8{0, 8, 1, 9, 4, 12, 5, 13});
    pairs[2 * i + 1] = __builtin_shuffle(from[2 * i], from[2 * i + 1], i32x8{2, 10, 3, 11, 6, 14, 7, 15});
  }
  for (int i = 0; i < 4; ++i) {  // columns i and i + 4 of rows 0 to 3, and of rows 4 to 7
    const i32x8 half = i % 2 ? i32x8{2, 3, 10, 11, 6, 7, 14, 15} : i32x8{0, 1, 8, 9, 4, 5, 12, 13};
    quads[i] = __builtin_shuffle(pairs[i / 2], pairs[i / 2 + 2], half);
    quads[i + 4] = __builtin_shuffle(pairs[i / 2 + 4], pairs[i / 2 + 6], half);
  }
  for (int i = 0; i < 4; ++i) {
    to[i] = __builtin_shuffle(quads[i], quads[i + 4], i32x8{0, 1, 2, 3, 8, 9, 10, 11});
    to[i + 4] = __builtin_shuffle(quads[i], quads[i + 4], i32x8{4, 5, 6, 7, 12, 13, 14, 15});
  }
}

// The larger of two in each lane; of a NaN in `a` and a number in `b`, the number.
KHUB_INLINE f32v larger(f32v a, f32v b) { return a > b ? a : b; }

KHUB_INLINE float largest(f32v v) {
  float most = v[0];
  for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// e^x for x <= 88: about 1 unit in the last place; 0 below the normal range, NaN for NaN.
KHUB_INLINE f32v exp(f32v x) {
  const f32v magic = splat(0x1.8p23f);  // adding it leaves the nearest integer in the low bits
  const i32v underflow = x < splat(-87.33654f);
  const f32v in_range = bit_cast<f32v>(bit_cast<i32v>(x) & ~underflow);
  const f32v shifted = in_range * 0x1.715476p0f + magic;
  const f32v n = shifted - magic;
  const f32v r =
      (in_range - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;  // ln 2 in two parts, the first exact times n
  f32v p = splat(1.0f / 5040);
  p = p * r + splat(1.0f / 720);
  p = p * r + splat(1.0f / 120);
  p = p * r + splat(1.0f / 24);
  p = p * r + splat(1.0f / 6);
  p = p * r + splat(0.5f);
  p = p * r + splat(1.0f);
  p = p * r + splat(1.0f);
  const i32v exponent = (bit_cast<i32v>(shifted) - bit_cast<i32v>(magic)) << 23;
  const f32v scaled = bit_cast<f32v>(bit_cast<i32v>(p) + exponent);
  const i32v nan = x != x;  // the sum of bits above may have made a number of it
  return bit_cast<f32v>((bit_cast<i32v>(scaled) & ~underflow & ~nan) | (bit_cast<i32v>(x) & nan));
}
