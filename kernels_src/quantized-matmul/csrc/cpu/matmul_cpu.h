#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../matmul.h"

namespace khub::cpu {

constexpr int64_t kStep = 128;     // of k, at most: products are summed as integers over a step
constexpr int64_t kPanel = 8;      // weight rows that are multiplied together
constexpr int64_t kNibbles = 64;   // 4-bit weights in a vector
constexpr int64_t kAbreast = 16;   // rows of x in a tile register of AMX
constexpr int64_t kTileRows = 32;  // weight rows of one work item: a row of x is read once for all of them

// The largest whole number in the bytes of a value that meets 4-bit weights: of one, of two, and of three times the
// step, so that products sum to less than 2^31.
constexpr int32_t kOneByte = 127;
constexpr int32_t kTwoBytes = 127 * 256 + 127;
constexpr int32_t kLargest = 1 << 27;

// x in fixed point: each row as one digit of 15 bits, or two of a float32 row, with a scale for each step. A digit
// is a row of its own here; products of digits and weights are whole numbers, exact in any order.
struct Digits {
  int in_bytes;    // for 4-bit weights, on processors that multiply bytes: 3 of a float32, 2 of less, 1 where that is
                   // allowed; else 0
  int64_t rows;    // in bytes m; else m, or twice that: all first digits, then all second ones
  int64_t step;    // 32, 64 or kStep: the weights' group, or a part of it
  int64_t steps;   // in k
  int64_t width;   // values of a row: k, rounded up to what is multiplied in one go
  int64_t abreast;  // rows whose bytes lie side by side: kAbreast for tile registers, else 1
  std::vector<int16_t> memory;
  int16_t* values;  // [rows, width] in the order in which weights unpack, zeros at the end; on a cache line
  int8_t* bytes;    // in their place: [rows / abreast, width / kNibbles, bytes of a value, abreast, kNibbles], the
                    // lowest first; in tile registers also of 8-bit weights: a digit's two, the low one without a sign
  std::vector<float> scales;    // [rows, steps]; NaN where a value of the step is not finite
  std::vector<int32_t> sums;    // [rows, steps] of the values, for zero points

  // The first kNibbles bytes of a row, of values that have so many.
  int8_t* row_at(int64_t row, int64_t value_bytes) const {
    return bytes + row / abreast * abreast * width * value_bytes + row % abreast * kNibbles;
  }
};

// The first cache line at or after `from`: a load across two of them is two loads.
template <class T>
T* on_line(T* from) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(from) + 63) / 64 * 64);
}

// The instruction sets that code is compiled for here, and the one that this processor gets.
enum class Processor { baseline, avx2, vnni, amx };
Processor processor();

Digits make_digits(const QuantizedMatmul& q);

// Rows [begin, end) of x.
void fill_digits(const QuantizedMatmul& q, Digits& digits, int64_t begin, int64_t end);

// What one thread works with: taken once, as a tile is soon done. Nothing in it is set.
struct Workspace {
  explicit Workspace(const Digits& digits);

  std::unique_ptr<float[]> floats;
  std::unique_ptr<int32_t[]> zeros;
  std::unique_ptr<int16_t[]> weights;
};

// Tiles [begin, end) of kTileRows weight rows, for all of x. Any split gives the same bits, and so does any m.
void matmul(const QuantizedMatmul& q, const Digits& digits, const Workspace& own, int64_t begin, int64_t end);

// A workspace's parts, sized by `Digits`.
struct Scratch {
  float* scales;   // [steps, kPanel] of four panels
  int32_t* zeros;  // the same
  int16_t* weights;  // [kTileRows, kUnpacked]
  float* sums;       // [rows, kTileRows]
};

constexpr int64_t kUnpacked = 256;  // of k that are unpacked at a time, for many rows of x

// The sums of the tile that starts at weight row `first`, and the digits of rows [begin, end) in bytes.
using SumTile = void (*)(const QuantizedMatmul& q, const Digits& digits, int64_t first, const Scratch& scratch);
using FillBytes = void (*)(const QuantizedMatmul& q, Digits& digits, int64_t begin, int64_t end);

// The same loops, each compiled for its own instruction set; null where the build, or the processor, has none of it.
struct Loops {
  SumTile sum_tile;
  SumTile sum_nibbles_tile;
  FillBytes fill_bytes;
};
extern const Loops loops_baseline, loops_avx2, loops_vnni;
extern const Loops loops_amx;  // of rows that lie abreast; their bytes are filled as for VNNI

// Whether there are tile registers and Linux, which is asked here, lets this process have them.
bool may_use_tile_registers();

}  // namespace khub::cpu
