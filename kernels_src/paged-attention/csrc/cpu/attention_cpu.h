#pragma once

#include <cstdint>
#include <vector>

#include "../visible.h"

namespace khub::cpu {

// Keys go by in spans that start at multiples of kSpan in every sequence. A span is attended on its own and
// merged with those before it, always in order: who computes it does not change a bit.
constexpr int64_t kSpan = 512;

// Consecutive query tokens of one sequence, which share its keys and values, and the keys they see.
struct Tile {
  int64_t seq;
  int64_t first_token;
  int64_t count;
  int64_t first_key;
  int64_t end_key;
  int64_t part;  // its first row in Plan::partials if its spans are apart, else -1
  bool blocked;  // of a long chunk; see attend_blocks.h

  int64_t first_span() const { return first_key / kSpan; }
  int64_t spans() const { return end_key <= first_key ? 0 : (end_key - 1) / kSpan + 1 - first_span(); }
};

// What one thread takes at a time: KV heads [first_head, end_head) of one span of a tile, or of all its spans.
struct Item {
  int64_t tile;
  int64_t span;  // -1: all
  int64_t first_head;
  int64_t end_head;
};

// Of a partial row: the output, its maximum and its total, in whole cache lines.
inline int64_t row_floats(int64_t width) { return width + 16; }

struct Plan {
  std::vector<Tile> tiles;
  std::vector<Item> items;
  int64_t width;                // floats of a head: the head size, rounded up for every instruction set
  std::vector<float> partials;  // [spans, tokens, heads] of each tile that is apart: width, maximum, total
  std::vector<int64_t> apart;   // the tiles to be merged

  int64_t row_floats() const { return khub::cpu::row_floats(width); }
};

// Items are of the bytes that go by, not of sequences: `threads` at work on one long sequence share it.
Plan make_plan(const Attention& attention, int64_t threads);

struct Workspace;

// Work item `item` of plan.items, then, once all are done, tiles [begin, end) of plan.apart.
void attend(const Attention& attention, Plan& plan, Workspace& own, int64_t item);
void merge(const Attention& attention, Plan& plan, int64_t begin, int64_t end);

void write_cache(const CacheWrite& write, int64_t begin_token, int64_t end_token);
void convert(const Convert& convert, int64_t begin_block, int64_t end_block);
void merge_states(const Merge& merge, int64_t begin_token, int64_t end_token);

// The partial result of a query token and head over a span of keys, and its place among those before it.
struct Partial {
  float* output;  // [width]
  float* maximum;
  float* total;  // 0 and -inf: no key was seen
};

inline Partial partial_row(float* rows, int64_t width, int64_t row) {
  float* at = rows + row * row_floats(width);
  return {at, at + width, at + width + 1};
}

// A query token and head of an item, and the keys it sees.
struct Row {
  int64_t token;
  int64_t head;
  Visible visible;
};

// One or two rows of a token, which see the same keys of a chunk: `seen`, of which [begin, end) are the first to
// the last.
struct Pass {
  int64_t row;
  int64_t head;  // of those of the item
  bool two;
  bool asks;  // for what comes later: one pass of each head does
  int64_t begin, end;
  uint32_t seen;
  float correction[2];  // of what the rows have summed before the chunk
};

// What one thread works with, kept from item to item.
struct Workspace {
  std::vector<Row> rows;
  std::vector<Pass> passes;
  std::vector<float> memory;
};

// A workspace's parts for one item. Rows are those of all its KV heads, a head's rows together.
struct Scratch {
  const Row* rows;
  int64_t rows_per_head;
  int64_t stride;  // Plan::width
  float* query;    // [rows, stride]
  float* span;     // partial rows of one span
  float* scores;   // [rows, kChunk or kBlock]
  Pass* passes;    // [rows]
  float* keys;     // [kChunk, stride]: of caches that cannot be read in place; 8 of them of a blocked tile
  float* values;   // [kChunk or kBlock, stride]
  float* turned;   // [stride, kBlock]
};

// Keys at a time, of few tokens and of many; they start at multiples of it in every sequence.
constexpr int64_t kChunk = 32, kBlock = 64;
constexpr int64_t kMaxHead = 256;  // elements, as the binding checks

// One item over one span, into scratch.span. The same loop, each compiled for its own instruction set; null
// where the build has none of it.
using AttendSpan = void (*)(const Attention& attention, const Tile& tile, const Item& item, int64_t span,
                            const Scratch& scratch);
extern const AttendSpan attend_span_baseline, attend_span_avx2, attend_span_avx512;

}  // namespace khub::cpu
