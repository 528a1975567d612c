// The types of eight bits by arithmetic on doubles, independent of the conversions the CPU kernels use.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_fp16.h"

namespace cuda_emulator {

// `kExponent` bits of exponent and the rest of seven mantissa; `largest` is the code of the largest number.
template <int kExponent, int largest>
struct Float8 {
  static constexpr int kMantissa = 7 - kExponent, kBias = (1 << (kExponent - 1)) - 1;

  uint8_t __x;

  Float8() = default;

  // To nearest, ties to even; what is too large, infinity too, becomes the largest.
  explicit Float8(float value) {
    const int sign = std::signbit(value) ? 0x80 : 0;
    const double magnitude = std::fabs(double(value));
    if (std::isnan(value)) {
      __x = 0x7f;
    } else if (magnitude >= decode(largest)) {
      __x = uint8_t(sign | largest);
    } else {
      const int exponent = magnitude == 0 ? 1 - kBias : std::max(std::ilogb(magnitude), 1 - kBias);
      const int units = int(std::nearbyint(std::ldexp(magnitude, kMantissa - exponent)));
      __x = uint8_t(sign | (((exponent + kBias - 1) << kMantissa) + units));
    }
  }

  explicit operator float() const { return float((__x & 0x80 ? -1.0 : 1.0) * decode(__x & 0x7f)); }

 private:
  static double decode(int code) {
    const int exponent = code >> kMantissa, mantissa = code & ((1 << kMantissa) - 1);
    if (code > largest) return kMantissa == 2 && mantissa == 0 ? INFINITY : NAN;
    return exponent == 0 ? std::ldexp(mantissa, 1 - kBias - kMantissa)
                         : std::ldexp(mantissa + (1 << kMantissa), exponent - kBias - kMantissa);
  }
};

}  // namespace cuda_emulator

using __nv_fp8_e4m3 = cuda_emulator::Float8<4, 0x7e>;
using __nv_fp8_e5m2 = cuda_emulator::Float8<5, 0x7b>;

enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

struct __half2_raw {
  unsigned short x, y;
};

inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(uint16_t two, __nv_fp8_interpretation_t type) {
  const auto one = [&](int byte) {
    const uint8_t code = uint8_t(two >> (8 * byte));
    float value;
    if (type == __NV_E4M3) {
      __nv_fp8_e4m3 number;
      number.__x = code;
      value = float(number);
    } else {
      __nv_fp8_e5m2 number;
      number.__x = code;
      value = float(number);
    }
    const __half half = __float2half_rn(value);
    unsigned short bits;
    std::memcpy(&bits, &half, sizeof(bits));
    return bits;
  };
  return {one(0), one(1)};
}
