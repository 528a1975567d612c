// The layout of one step of continuous batching, on plain buffers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace batch_planner {

// One sequence's share of a step: the tokens at positions [start, end), of `length` wanted. `blocks` hold [0, end).
struct Chunk {
  int64_t start;
  int64_t end;
  int64_t length;
  int64_t blocks;
};

struct Share {
  std::vector<Chunk> chunks;
  int64_t tokens = 0;  // in the step
  int64_t widest = 0;  // most blocks of a sequence
};

// Shares `token_budget` tokens over the sequences, first come first served. Sequence i wants the last
// query_lens[i] of its seq_lens[i] tokens computed. Throws std::invalid_argument for lengths that cannot be.
Share share_budget(const std::vector<int64_t>& seq_lens, const std::vector<int64_t>& query_lens,
                   int64_t block_size, int64_t token_budget);

// Where the tokens of one chunk lie: their positions and slots, slot = block * block_size + offset.
// `blocks` is the sequence's row of the block table; `positions` and `slots` have end - start places.
void place(const Chunk& chunk, const int32_t* blocks, int64_t block_size, int64_t* positions, int64_t* slots);

}  // namespace batch_planner
