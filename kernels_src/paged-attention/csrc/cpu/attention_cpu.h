#pragma once

#include <cstdint>
#include <vector>

#include "../attention.h"

namespace khub::cpu {

// Consecutive query tokens of one sequence, which share its keys and values.
struct Tile {
  int64_t seq;
  int64_t first_token;
  int64_t count;
};

std::vector<Tile> plan_tiles(const Attention& attention);

// Work items [begin, end) of tiles.size() * num_kv_heads. Any split gives the same bits: an item writes its
// own rows, and a row is computed alike whatever else is in its tile.
void attend(const Attention& attention, const std::vector<Tile>& tiles, int64_t begin, int64_t end);

void write_cache(const CacheWrite& write, int64_t begin_token, int64_t end_token);

}  // namespace khub::cpu
