// The product of many float32 rows: x in stripes, weights in widened panels.
#pragma once

#include <cstdint>

#include "../matmul.h"

namespace khub::cpu {

constexpr int64_t kManyRows = 64;    // from here on widening the weights once for all rows pays
constexpr int64_t kRowsAtOnce = 768;  // of x that are copied into stripes at a time
constexpr int64_t kStripe = 6;       // rows of x, and
constexpr int64_t kPanelWidth = 16;  // weight rows, that are multiplied in registers
constexpr int64_t kBlockK = 256;     // channels of a panel: it stays in the first cache
constexpr int64_t kBlockRows = 128;  // weight rows of one work item, at most: their panels stay in the second cache

// Rows [first, first + rows) of x: [ceil(rows / kStripe), k, kStripe], zeros past the last.
struct Stripes {
  int64_t first;
  int64_t rows;
  float* values;
};

// Whether `multiply_blocks` is there for this processor and worth it for this product.
bool takes_blocks(const QuantizedMatmul& q);

// Fills stripes [begin, end).
void fill_stripes(const QuantizedMatmul& q, const Stripes& x, int64_t begin, int64_t end);

// Weight rows [begin, end), at most kBlockRows, `begin` a multiple of kPanelWidth, for the rows of `x`. Any split gives
// the same bits.
void multiply_blocks(const QuantizedMatmul& q, const Stripes& x, int64_t begin, int64_t end);

// The same loops, each compiled for its own instruction set; `panels` is [kBlockRows, kBlockK]. Null where the
// build has none, or no registers for them.
using MultiplyBlock = void (*)(const QuantizedMatmul& q, const Stripes& x, int64_t begin, int64_t end, float* panels);
extern const MultiplyBlock multiply_block_avx2, multiply_block_vnni;

}  // namespace khub::cpu
