// E4M3 and E5M2 as fp32 lanes. Included inside a namespace after lanes.h, once per instruction set.
//
// Pairs of elements are taken as they lie, so that the even ones and the odd ones come apart without a shuffle, and
// moved to where a float16 has them, which processors widen themselves.

typedef int16_t i16v __attribute__((vector_size(2 * KHUB_LANES)));

// What is loaded times this is the number: the exponent of a moved E4M3 is 8 too small, for all alike.
template <class T>
static constexpr float kUnit = std::is_same_v<T, khub::E4M3> ? 256.0f : 1.0f;

KHUB_INLINE f32v widen(u16v halves) {
  khub::Half bits[kLanes];
  std::memcpy(bits, &halves, sizeof(halves));
  return load(bits);
}

KHUB_INLINE u16v upper_to_half(khub::E5M2, u16v pairs) { return pairs & 0xff00; }

// The one NaN, all ones, carries into the exponent.
KHUB_INLINE u16v upper_to_half(khub::E4M3, u16v pairs) {
  const u16v moved = bit_cast<u16v>(bit_cast<i16v>(pairs) >> 1) & 0xbf80;
  return moved | ((moved + 0x80) & 0x4000);
}

template <class T>
KHUB_INLINE void load_pairs(const T* from, f32v* to) {
  u16v pairs;
  std::memcpy(&pairs, from, sizeof(pairs));
  to[0] = widen(upper_to_half(T{}, pairs << 8));
  to[1] = widen(upper_to_half(T{}, pairs));
}
