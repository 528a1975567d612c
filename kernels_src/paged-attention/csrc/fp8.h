// The two types of eight bits that a cache may hold (OCP 8-bit floating point, 2023), and their conversions on the
// host. E4M3 has no infinity and one NaN for each sign; E5M2 is the upper half of a float16.
#pragma once

#include "scalar.h"

namespace khub {

struct E4M3 {
  uint8_t bits;
};

struct E5M2 {
  uint8_t bits;
};

inline float to_float(E5M2 value) { return to_float(Half{uint16_t(value.bits << 8)}); }

// As a float16 whose exponent is 8 too small, which the multiplication makes up for: it is exact.
inline float to_float(E4M3 value) {
  const uint32_t magnitude = value.bits & 0x7fu;
  const uint32_t nan = (magnitude + 1u) & 0x80u;  // all ones carry into the exponent of a NaN
  return to_float(Half{uint16_t((value.bits & 0x80u) << 8 | (magnitude | nan) << 7)}) * 256.0f;
}

// To nearest, ties to even; beyond `largest` to it, infinity too. No branch, so that compilers take many at a time.
template <int kMantissa>
inline uint8_t round_to_fp8(float value, uint32_t largest) {
  constexpr int kShift = 23 - kMantissa, kBias = (1 << (6 - kMantissa)) - 1;
  constexpr uint32_t kRebias = uint32_t(127 - kBias) << 23;
  constexpr uint32_t kUnit = uint32_t(127 + 24 - kBias - kMantissa) << 23;  // one unit there is a subnormal's
  const uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffffu;
  const uint32_t even = (magnitude >> kShift) & 1u;
  const uint32_t normal = (magnitude + (1u << (kShift - 1)) - 1u + even - kRebias) >> kShift;
  const uint32_t subnormal = float_bits(float_from_bits(magnitude) + float_from_bits(kUnit)) - kUnit;
  const uint32_t rounded = magnitude < kRebias + (1u << 23) ? subnormal : normal;
  const uint32_t finite = rounded < largest ? rounded : largest;
  return uint8_t(((bits >> 24) & 0x80u) | (magnitude > 0x7f800000u ? 0x7fu : finite));
}

inline void from_float(float value, E4M3* out) { out->bits = round_to_fp8<3>(value, 0x7e); }
inline void from_float(float value, E5M2* out) { out->bits = round_to_fp8<2>(value, 0x7b); }

}  // namespace khub
