// Products with GGUF's blocks for the instruction set every processor of the architecture has.
#include <cstring>

#include "gguf_cpu.h"
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

#define KHUB_LANES 8
#include "lanes.h"

typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint64_t u64x2 __attribute__((vector_size(16)));

// The lowest byte first. Interleaving with zeros is an instruction; a conversion the compiler would do one by one.
KHUB_INLINE i32x8 widen_bytes(uint64_t bytes) {
  struct Halves {
    u16x8 low, high;
  };
  const u8x16 lanes = bit_cast<u8x16>(u64x2{bytes, 0});
  const u8x16 pairs{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  const u16x8 twos = bit_cast<u16x8>(__builtin_shuffle(lanes, u8x16{}, pairs));
  return bit_cast<i32x8>(Halves{__builtin_shuffle(twos, u16x8{}, u16x8{0, 8, 1, 9, 2, 10, 3, 11}),
                                __builtin_shuffle(twos, u16x8{}, u16x8{4, 12, 5, 13, 6, 14, 7, 15})});
}

#include "gguf_impl.h"

}  // namespace

const SumGguf sum_gguf_baseline = sum_gguf;

}  // namespace khub::cpu
