// The element types the kernels read and write, and their conversions on the host.
// A copy of this file is in every package of this tree, so that each package builds alone.
#pragma once

#include <cstdint>
#include <cstring>

namespace khub {

enum class DType : int32_t { f32 = 0, f16 = 1, bf16 = 2 };

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) { return float_from_bits(uint32_t(value.bits) << 16); }

inline float to_float(Half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) return float_from_bits(sign | magnitude | 0x7f800000u);  // inf, NaN
  // The exponent is 112 too small; the multiplication is exact and also normalises subnormals.
  return float_from_bits(sign | float_bits(float_from_bits(magnitude) * 0x1p112f));
}

inline void from_float(float value, float* out) { *out = value; }

// Round to nearest, ties to even.
inline void from_float(float value, BFloat16* out) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out->bits = uint16_t((bits >> 16) | 0x40u);  // a quiet NaN: rounding could carry it into infinity
    return;
  }
  out->bits = uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void from_float(float value, Half* out) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    out->bits = uint16_t(sign | 0x7e00u);
  } else if (magnitude >= 0x477ff000u) {  // 65520, half way to the first value out of range
    out->bits = uint16_t(sign | 0x7c00u);
  } else if (magnitude < 0x38800000u) {  // below the smallest normal: one unit is 2^-24, as it is at 0.5f
    out->bits = uint16_t(sign | (float_bits(float_from_bits(magnitude) + 0.5f) - 0x3f000000u));
  } else {
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    out->bits = uint16_t(sign | ((rounded - 0x38000000u) >> 13));
  }
}

}  // namespace khub
