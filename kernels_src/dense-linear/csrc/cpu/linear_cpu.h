#pragma once

#include <cstdint>

#include "../linear.h"

namespace khub::cpu {

constexpr int64_t kTurn = 32;  // of k, that are multiplied in a turn
constexpr int64_t kTileRows = 24;  // weight rows of one work item: a stretch of them fits the second cache

// Few rows of x, widened, each `stride` numbers after the one before.
struct WideRows {
  const float* values;
  int64_t stride;
};

// Tiles [begin, end) of kTileRows weight rows, for all of x. Any split gives the same bits, and so does any
// m.
void linear(const Linear& q, const WideRows& x, int64_t begin, int64_t end);

// A row of `count` elements as float32, in the order in which weights are loaded: of bfloat16, in what fills whole turns,
// eight numbers at even places and then those between.
void widen(DType dtype, const void* from, float* to, int64_t count);

constexpr int64_t kManyRows = 64;     // from here on copying the weights into panels, once for all rows, pays
constexpr int64_t kRowsAtOnce = 768;  // of x that are copied into stripes at a time
constexpr int64_t kStripe = 6;        // rows of x, and
constexpr int64_t kPanelWidth = 16;   // weight rows, that are multiplied in registers
constexpr int64_t kBlockK = 256;      // channels of a panel: it stays in the first cache
constexpr int64_t kBlockRows = 128;   // weight rows of one work item, at most: their panels stay in the second cache

// Rows [first, first + rows) of x, widened: [ceil(rows / kStripe), k, kStripe], zeros past the last.
struct Stripes {
  int64_t first;
  int64_t rows;
  float* values;
};

// Whether `multiply_blocks` is there for this processor and worth it for this product.
bool takes_blocks(const Linear& q);

// Fills stripes [begin, end).
void fill_stripes(const Linear& q, const Stripes& x, int64_t begin, int64_t end);

// Weight rows [begin, end), at most kBlockRows, `begin` a multiple of kPanelWidth, for the rows of `x`. Any split gives
// the same bits, and so does any m that takes blocks.
void multiply_blocks(const Linear& q, const Stripes& x, int64_t begin, int64_t end);

}  // namespace khub::cpu
