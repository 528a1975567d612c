// Eight fp32 lanes in GCC's portable vectors. Included inside a namespace, once per instruction set, because
// a vector operation is lowered for the target of the function that spells it.
// A copy of this file is in every package of this tree, so that each package builds alone.

// Passing vectors to a real call would depend on the instruction set of the caller.
#undef KHUB_INLINE
#define KHUB_INLINE static inline __attribute__((always_inline))

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));

static constexpr int64_t kLanes = 8;

template <class To, class From>
KHUB_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

KHUB_INLINE f32x8 splat(float value) { return f32x8{} + value; }

KHUB_INLINE f32x8 load(const float* from) {
  f32x8 lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

KHUB_INLINE u32x8 load_bits16(const void* from) {
  u16x8 bits;
  std::memcpy(&bits, from, sizeof(bits));
  return __builtin_convertvector(bits, u32x8);
}

KHUB_INLINE f32x8 load(const khub::BFloat16* from) { return bit_cast<f32x8>(load_bits16(from) << 16); }

KHUB_INLINE f32x8 load(const khub::Half* from) {
  const u32x8 bits = load_bits16(from);
  const u32x8 sign = (bits & 0x8000u) << 16;
  const u32x8 magnitude = (bits & 0x7fffu) << 13;
  const u32x8 finite = bit_cast<u32x8>(bit_cast<f32x8>(magnitude) * 0x1p112f);
  const u32x8 special = bit_cast<u32x8>(bit_cast<i32x8>(magnitude) >= 0x0f800000);
  return bit_cast<f32x8>(sign | finite | (special & 0x7f800000u));
}

// The first `count` (at most 8) elements, then zeros.
template <class T>
KHUB_INLINE f32x8 load_part(const T* from, int64_t count) {
  T padded[kLanes] = {};
  std::memcpy(padded, from, size_t(count) * sizeof(T));
  return load(padded);
}

KHUB_INLINE void store(float* to, f32x8 lanes) { std::memcpy(to, &lanes, sizeof(lanes)); }

KHUB_INLINE u32x8 select(i32x8 mask, u32x8 yes, u32x8 no) {
  return (bit_cast<u32x8>(mask) & yes) | (~bit_cast<u32x8>(mask) & no);
}

KHUB_INLINE void store_bits16(void* to, u32x8 bits) {
  const u16x8 narrow = __builtin_convertvector(bits, u16x8);
  std::memcpy(to, &narrow, sizeof(narrow));
}

// The two below round as khub::from_float does.
KHUB_INLINE void store(khub::BFloat16* to, f32x8 lanes) {
  const u32x8 bits = bit_cast<u32x8>(lanes);
  const u32x8 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  store_bits16(to, select(lanes != lanes, (bits >> 16) | 0x40u, rounded));
}

KHUB_INLINE void store(khub::Half* to, f32x8 lanes) {
  const u32x8 bits = bit_cast<u32x8>(lanes);
  const i32x8 magnitude = bit_cast<i32x8>(bits & 0x7fffffffu);
  const u32x8 normal = (bit_cast<u32x8>(magnitude) + 0xfffu + ((bits >> 13) & 1u) - 0x38000000u) >> 13;
  const u32x8 subnormal = bit_cast<u32x8>(bit_cast<f32x8>(magnitude) + 0.5f) - 0x3f000000u;
  u32x8 half = select(magnitude < 0x38800000, subnormal, normal);
  half = select(magnitude >= 0x477ff000, u32x8{} + 0x7c00u, half);
  half = select(magnitude > 0x7f800000, u32x8{} + 0x7e00u, half);
  store_bits16(to, ((bits >> 16) & 0x8000u) | half);
}

// In a fixed order, so that a sum is the same in every run.
KHUB_INLINE float sum(f32x8 v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

// e^x for x <= 88: about 1 unit in the last place; 0 below the normal range, NaN for NaN.
KHUB_INLINE f32x8 exp(f32x8 x) {
  const f32x8 magic = splat(0x1.8p23f);  // adding it leaves the nearest integer in the low bits
  const i32x8 underflow = x < splat(-87.33654f);
  const f32x8 in_range = bit_cast<f32x8>(bit_cast<i32x8>(x) & ~underflow);
  const f32x8 shifted = in_range * 0x1.715476p0f + magic;
  const f32x8 n = shifted - magic;
  const f32x8 r =
      (in_range - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;  // ln 2 in two parts, the first exact times n
  f32x8 p = splat(1.0f / 5040);
  p = p * r + splat(1.0f / 720);
  p = p * r + splat(1.0f / 120);
  p = p * r + splat(1.0f / 24);
  p = p * r + splat(1.0f / 6);
  p = p * r + splat(0.5f);
  p = p * r + splat(1.0f);
  p = p * r + splat(1.0f);
  const i32x8 exponent = (bit_cast<i32x8>(shifted) - bit_cast<i32x8>(magic)) << 23;
  const f32x8 scaled = bit_cast<f32x8>(bit_cast<i32x8>(p) + exponent);
  const i32x8 nan = x != x;  // the sum of bits above may have made a number of it
  return bit_cast<f32x8>((bit_cast<i32x8>(scaled) & ~underflow & ~nan) | (bit_cast<i32x8>(x) & nan));
}
