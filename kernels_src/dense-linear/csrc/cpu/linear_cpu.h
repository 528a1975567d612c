#pragma once

#include <cstdint>

#include "../linear.h"

namespace khub::cpu {

constexpr int64_t kTileRows = 24;  // weight rows of one work item: a stretch of them fits the second cache

// Tiles [begin, end) of kTileRows weight rows, for all of x. Any split gives the same bits, and so does any
// m.
void linear(const Linear& q, int64_t begin, int64_t end);

// A row of `count` elements as float32.
void widen(DType dtype, const void* from, float* to, int64_t count);

}  // namespace khub::cpu
