// The integer products of many rows of x for AMX-INT8, whose tile registers hold 16 rows of 64 bytes.
// No machine that this project has been run on has it: its instructions have been run by the tests' emulator only, and
// no time has been measured.
//
// A register's 16 rows of x, a byte of each of 64 values, meet 16 weight rows that were spread as the instruction takes
// them: four channels of every row side by side. Each byte of x has a register of sums. These are whole numbers, exact
// in any order, and what is done with them is done as in matmul_impl.h: the bits are those of the other instruction
// sets.
//
// Roofline: the multiply-adds, 16,384 in 16 cycles; but every step's sums leave the registers to be scaled, 16 lanes
// in about 12 instructions, and with groups of 64 or less that is the longer part.
#include <cstring>

#include "matmul_cpu.h"

// Compilers before GCC 12 lack some of this. KHUB_BASELINE is set by tests to be given the other paths.
#if defined(__x86_64__) && !defined(KHUB_BASELINE) && __GNUC__ >= 12
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(KHUB_EMULATE_AMX)
#include <emulated_amx.h>
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC target("amx-tile,amx-int8,avx512f,avx512vl,avx512bw,avx2,fma,f16c")
#endif
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

#define KHUB_LANES 8
#include "lanes.h"
//
#include "panels_impl.h"

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));

constexpr int64_t kLine = kNibbles;              // bytes in a row of a register, and
constexpr int64_t kRegister = kAbreast * kLine;  // in all of them
constexpr int64_t kStripRows = 2 * kPanel;       // weight rows in a register
constexpr int64_t kUnits = kUnpacked / kLine;    // of kLine channels, whose weights are spread at a time
constexpr int64_t kStrip = kUnits * 2 * kRegister;  // bytes of them, at most
static_assert(kTileRows / kStripRows * kStrip == kTileRows * kUnpacked * int64_t(sizeof(int16_t)), "fills `weights`");

using Sums = int32_t[kAbreast][kStripRows];

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Registers 0 to 2 are the sums of each byte of x, 3 to 5 these bytes, 6 the weights.
const TileConfig kConfig = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16}};

// This thread's registers, for as long as it lives: a thread that leaves them in use makes each switch to another
// longer, and others' code may want them in other shapes.
struct TileRegisters {
  TileRegisters() { _tile_loadconfig(&kConfig); }
  ~TileRegisters() { _tile_release(); }
};

// GCC does not know that a register is loaded from memory: what was stored is there from here on.
KHUB_INLINE void finish_stores() { __asm__ volatile("" ::: "memory"); }

// The weights of `count` units, [halves, 16 rows] of a register each, from unit `begin` on. Of nibbles the first 8 rows
// are even channels, the last 8 odd ones, as x has them. Where a unit is two steps, each has a register in which the
// other's are zeros.
template <int kBits>
void spread_weights(const QuantizedMatmul& q, int64_t first, int64_t begin, int64_t count, int64_t halves,
                    uint8_t* to) {
  for (int64_t unit = begin; unit < begin + count; ++unit, to += halves * kRegister) {
    if (halves > 1) std::memset(to, 0, size_t(halves * kRegister));
    for (int64_t panel = 0; panel < 2; ++panel) {
      // Past the last panel: the last one again.
      const int64_t top = first + panel * kPanel < q.n ? first + panel * kPanel : first;
      f32x8 words[16];
      for (int64_t i = 0; i < kBits / 4; ++i) load_words_of(q, top, (unit * kBits / 4 + i) * 32, words + 8 * i);
      for (int64_t i = 0; i < 16; ++i) {
        uint8_t* line = to + panel * 32 + i * kLine + (halves > 1 ? i % 8 / 4 * kRegister : 0);
        u32x8 four = bit_cast<u32x8>(words[kBits == 8 ? i : i % 8]);
        if (kBits == 4) four = (i < 8 ? four : four >> 4) & 0x0f0f0f0fu;
        std::memcpy(line, &four, sizeof(four));
      }
    }
  }
}

// sums[b]: the products of byte b of 16 rows of x with 16 weight rows, over `units` whose weights are `apart`.
template <int kBytes, bool kUnsignedLow>
KHUB_INLINE void multiply(const int8_t* x, const uint8_t* weights, int64_t units, int64_t apart, Sums* sums) {
  _tile_zero(0);
  if (kBytes > 1) _tile_zero(1);
  if (kBytes > 2) _tile_zero(2);
  for (int64_t unit = 0; unit < units; ++unit, x += kBytes * kRegister, weights += apart) {
    _tile_loadd(6, weights, kLine);
    _tile_loadd(3, x, kLine);
    if (kUnsignedLow) {
      _tile_dpbusd(0, 3, 6);
    } else {
      _tile_dpbssd(0, 3, 6);
    }
    if (kBytes > 1) {
      _tile_loadd(4, x + kRegister, kLine);
      _tile_dpbssd(1, 4, 6);
    }
    if (kBytes > 2) {
      _tile_loadd(5, x + 2 * kRegister, kLine);
      _tile_dpbssd(2, 5, 6);
    }
  }
  _tile_stored(0, sums[0], kLine);
  if (kBytes > 1) _tile_stored(1, sums[1], kLine);
  if (kBytes > 2) _tile_stored(2, sums[2], kLine);
}

// Eight lanes of each.
KHUB_INLINE i32x16 load_both(const void* low, const void* high) {
  i32x8 lanes[2];
  std::memcpy(&lanes[0], low, sizeof(i32x8));
  std::memcpy(&lanes[1], high, sizeof(i32x8));
  return __builtin_shufflevector(lanes[0], lanes[1], 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// to += (products - zeros * sum of x) * scales, of one step of rows [row, row + kAbreast), the bytes put together.
template <int kBytes>
KHUB_INLINE void add_scaled(const Sums* sums, const Panel* pair, const Digits& d, int64_t row, int64_t step,
                            float* to) {
  const int64_t at = step * kPanel, rows = d.rows - row < kAbreast ? d.rows - row : kAbreast, steps = d.steps;
  const f32x16 scales = bit_cast<f32x16>(load_both(pair[0].scales + at, pair[1].scales + at));
  i32x16 zeros = i32x16{} + pair[0].zero;
  if (pair[0].zeros) zeros = load_both(pair[0].zeros + at, pair[1].zeros + at);
  const float* x_scales = d.scales.data() + row * steps + step;
  const int32_t* x_sums = d.sums.data() + row * steps + step;
  for (int64_t r = 0; r < rows; ++r, to += kTileRows, x_scales += steps, x_sums += steps) {
    i32x16 products;
    std::memcpy(&products, sums[kBytes - 1][r], sizeof(products));
#pragma GCC unroll 2
    for (int b = kBytes - 2; b >= 0; --b) {
      i32x16 lower;
      std::memcpy(&lower, sums[b][r], sizeof(lower));
      products = (products << 8) + lower;
    }
    products -= zeros * *x_sums;
    f32x16 total;
    std::memcpy(&total, to, sizeof(total));
    total += __builtin_convertvector(products, f32x16) * (scales * *x_scales);
    std::memcpy(to, &total, sizeof(total));
  }
}

template <int kBits, int kBytes>
void sum_tile_of(const QuantizedMatmul& q, const Digits& d, int64_t first, const Scratch& s) {
  Panel panels[kTileRows / kPanel];
  const int64_t strips = first + kStripRows < q.n ? 2 : 1;
  for (int64_t i = 0; i < 2 * strips; ++i) {
    const int64_t top = first + i * kPanel < q.n ? first + i * kPanel : first + (i - 1) * kPanel;
    panels[i] = panel_at(q, d, top, s.scales + i * d.steps * kPanel, s.zeros + i * d.steps * kPanel);
  }
  uint8_t* const weights = reinterpret_cast<uint8_t*>(s.weights);
  const int64_t units = (q.k + kLine - 1) / kLine, turn = d.step > kLine ? d.step / kLine : 1;
  const int64_t halves = d.step < kLine ? 2 : 1;
  std::memset(s.sums, 0, size_t(d.rows * kTileRows) * sizeof(float));
  alignas(64) Sums sums[kBytes];
  const TileRegisters registers;
  for (int64_t begin = 0; begin < units; begin += kUnits) {
    const int64_t count = units - begin < kUnits ? units - begin : kUnits;
    for (int64_t i = 0; i < strips; ++i) {
      spread_weights<kBits>(q, first + i * kStripRows, begin, count, halves, weights + i * kStrip);
    }
    finish_stores();
    for (int64_t row = 0; row < d.rows; row += kAbreast) {
      const int8_t* const x = d.row_at(row, kBytes) + begin * kBytes * kRegister;
      for (int64_t i = 0; i < strips; ++i) {
        float* const to = s.sums + row * kTileRows + i * kStripRows;
        int64_t step = begin * kLine / d.step;
        for (int64_t unit = 0; unit < count; unit += turn) {
          for (int64_t half = 0; half < halves && step < d.steps; ++half, ++step) {
            multiply<kBytes, kBits == 8>(x + unit * kBytes * kRegister,
                                         weights + i * kStrip + (unit * halves + half) * kRegister,
                                         count - unit < turn ? count - unit : turn, kRegister, sums);
            add_scaled<kBytes>(sums, panels + 2 * i, d, row, step, to);
          }
        }
      }
    }
  }
}

void sum_nibbles_tile(const QuantizedMatmul& q, const Digits& d, int64_t first, const Scratch& scratch) {
  switch (d.in_bytes) {
    case 3: return sum_tile_of<4, 3>(q, d, first, scratch);
    case 2: return sum_tile_of<4, 2>(q, d, first, scratch);
    default: return sum_tile_of<4, 1>(q, d, first, scratch);
  }
}

}  // namespace

const Loops loops_amx = {sum_tile_of<8, 2>, sum_nibbles_tile, nullptr};

bool may_use_tile_registers() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-int8") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw")) {
    return false;
  }
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace khub::cpu

#else

namespace khub::cpu {

const Loops loops_amx = {nullptr, nullptr, nullptr};

bool may_use_tile_registers() { return false; }

}  // namespace khub::cpu

#endif
