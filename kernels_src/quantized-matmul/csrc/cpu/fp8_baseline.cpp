// Products with e4m3 weights for the instruction set every processor of the architecture has.
#include <cstring>

#include "fp8_cpu.h"
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

#define KHUB_LANES 8
#include "lanes.h"

typedef uint8_t u8x8 __attribute__((vector_size(8)));

static constexpr float kE4M3Unit = 1.0f;

// As floats whose exponent is 120 too small, which an exact multiplication makes up for.
KHUB_INLINE f32x8 widen_e4m3(const uint8_t* from) {
  u8x8 bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  const u32v words = __builtin_convertvector(bytes, u32v);
  return bit_cast<f32x8>((words & 0x80u) << 24 | (words & 0x7fu) << 20) * 0x1p120f;
}

#include "fp8_impl.h"

}  // namespace

const SumFp8 sum_fp8_baseline = sum_fp8;

}  // namespace khub::cpu
