// How a step is cut into items, how partial results come together, and which instruction set does the work.
#include <algorithm>
#include <cmath>

#include "../finish.h"
#include "attention_cpu.h"

namespace khub::cpu {

namespace {

constexpr int64_t kTileTokens = 8;
constexpr int64_t kApartRows = 16;  // a tile of at most so many rows for each KV head is read once, as in decoding
constexpr int64_t kBlockedTokens = 16;  // from so many of a sequence on they are worth turning keys for
constexpr int64_t kBlockedRows = 192;   // of a tile then: queries, scores and sums stay in the second cache

AttendSpan pick() {
#if defined(KHUB_EMULATE_AVX512)
  return attend_span_avx512;
#elif defined(__x86_64__)
  __builtin_cpu_init();
  if (attend_span_avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return attend_span_avx512;
  }
  if (attend_span_avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return attend_span_avx2;
  }
#endif
  return attend_span_baseline;
}

void clear(const Partial& row, int64_t width) {
  std::fill(row.output, row.output + width, 0.0f);
  *row.maximum = -INFINITY;
  *row.total = 0.0f;
}

void merge_into(const Partial& into, const Partial& from, int64_t width) {
  if (*from.total == 0.0f) return;
  const float maximum = std::max(*into.maximum, *from.maximum);
  const float before = *into.total == 0.0f ? 0.0f : std::exp(*into.maximum - maximum);
  const float added = std::exp(*from.maximum - maximum);
  for (int64_t d = 0; d < width; ++d) into.output[d] = into.output[d] * before + from.output[d] * added;
  *into.total = *into.total * before + *from.total * added;
  *into.maximum = maximum;
}

void write_out(const Attention& a, int64_t token, int64_t head, const Partial& row) {
  const int64_t at = token * a.out_token_stride + head * a.out_head_stride;
  const Finish end = finish(a, head, *row.maximum, *row.total);
  const auto write = [&](auto* out) {
    for (int64_t d = 0; d < a.head_size; ++d) khub::from_float(row.output[d] * end.factor, out + at + d);
  };
  switch (a.dtype) {
    case DType::f32: write(static_cast<float*>(a.out)); break;
    case DType::f16: write(static_cast<Half*>(a.out)); break;
    case DType::bf16: write(static_cast<BFloat16*>(a.out)); break;
  }
  if (a.lse) a.lse[token * a.num_heads + head] = end.lse;
}

void start_rows(const Attention& a, const Tile& tile, const Item& item, std::vector<Row>& rows) {
  const int64_t group = a.num_heads / a.num_kv_heads;
  const int64_t query_end = a.query_start_loc ? a.query_start_loc[tile.seq + 1] : tile.seq + 1;
  const int64_t seq_len = a.seq_lens[tile.seq];
  rows.clear();
  for (int64_t head = item.first_head; head < item.end_head; ++head) {
    for (int64_t token = tile.first_token; token < tile.first_token + tile.count; ++token) {
      const Visible visible = visible_keys(a, token, query_end, seq_len);
      for (int64_t i = 0; i < group; ++i) rows.push_back({token, head * group + i, visible});
    }
  }
}

// An item over all its spans: merged here and written out, or one span into the plan's partials.
void attend_item(const Attention& a, Plan& plan, const Item& item, const std::vector<Row>& rows,
                 const Scratch& scratch, float* merged) {
  static const AttendSpan attend_span = pick();
  const Tile& tile = plan.tiles[item.tile];
  const int64_t count = int64_t(rows.size());
  const bool apart = item.span >= 0;
  const int64_t first = apart ? tile.first_span() + item.span : tile.first_span();
  for (int64_t r = 0; !apart && r < count; ++r) clear(partial_row(merged, plan.width, r), plan.width);
  for (int64_t span = first; span < (apart ? first + 1 : first + tile.spans()); ++span) {
    for (int64_t r = 0; r < count; ++r) clear(partial_row(scratch.span, plan.width, r), plan.width);
    attend_span(a, tile, item, span, scratch);
    for (int64_t r = 0; !apart && r < count; ++r) {
      merge_into(partial_row(merged, plan.width, r), partial_row(scratch.span, plan.width, r), plan.width);
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    if (!apart) {
      write_out(a, rows[r].token, rows[r].head, partial_row(merged, plan.width, r));
      continue;
    }
    const int64_t row = (item.span * tile.count + rows[r].token - tile.first_token) * a.num_heads + rows[r].head;
    const float* from = scratch.span + r * plan.row_floats();
    std::copy(from, from + plan.row_floats(), plan.partials.data() + (tile.part + row) * plan.row_floats());
  }
}

Tile make_tile(const Attention& a, int64_t seq, int64_t token, int64_t count, int64_t query_end) {
  const int64_t length = a.seq_lens[seq];
  const int64_t end_key = std::max<int64_t>(0, visible_keys(a, token + count - 1, query_end, length).end_key);
  int64_t first_key = end_key;
  for (int64_t t = token; t < token + count; ++t) {  // of a tree, a later one may see earlier keys
    first_key = std::min(first_key, visible_keys(a, t, query_end, length).first_key);
  }
  return {seq, token, count, first_key, end_key, -1, false};
}

}  // namespace

// The size of a tile of a chunk that is worked on in blocks: no result depends on it.
int64_t blocked_tokens(const Attention& a, int64_t tokens, int64_t threads) {
  int64_t each = std::max<int64_t>(1, kBlockedRows / (a.num_heads / a.num_kv_heads));
  while (each > kTileTokens && (tokens + each - 1) / each * a.num_kv_heads < 2 * threads) each = (each + 1) / 2;
  return each;
}

Plan make_plan(const Attention& a, int64_t threads) {
  Plan plan;
  plan.width = (a.head_size + 31) / 32 * 32;
  for (int64_t seq = 0; seq < a.num_seqs; ++seq) {
    const int64_t begin = a.query_start_loc ? a.query_start_loc[seq] : seq;
    const int64_t end = a.query_start_loc ? a.query_start_loc[seq + 1] : seq + 1;
    const bool blocked = end - begin >= kBlockedTokens && !a.tree_mask;
    const int64_t each = blocked ? blocked_tokens(a, end - begin, threads) : kTileTokens;
    for (int64_t token = begin; token < end; token += each) {
      plan.tiles.push_back(make_tile(a, seq, token, std::min(each, end - token), end));
      plan.tiles.back().blocked = blocked;
    }
  }
  const int64_t group = a.num_heads / a.num_kv_heads;
  const auto reads_once = [&](const Tile& tile) { return !tile.blocked && tile.count * group <= kApartRows; };
  int64_t rows = 0, shares = 0;
  for (Tile& tile : plan.tiles) {
    if (tile.spans() > 1 && reads_once(tile)) {
      tile.part = rows;
      rows += tile.spans() * tile.count * a.num_heads;
      shares += tile.spans();
      plan.apart.push_back(&tile - plan.tiles.data());
    } else {
      shares += reads_once(tile) ? 1 : a.num_kv_heads;
    }
  }
  plan.partials.resize(size_t(rows * plan.row_floats()));
  // All heads of a slot lie together: taking them together reads memory in order. Where there are fewer items than
  // threads they are cut by heads, and no further.
  const int64_t each = (threads + shares - 1) / std::max<int64_t>(1, shares);
  const int64_t cuts = std::max<int64_t>(1, std::min(a.num_kv_heads, each));
  for (int64_t i = 0; i < int64_t(plan.tiles.size()); ++i) {
    const Tile& tile = plan.tiles[i];
    const int64_t together = reads_once(tile) ? (a.num_kv_heads + cuts - 1) / cuts : int64_t(1);
    for (int64_t s = 0; s < (tile.part < 0 ? 1 : tile.spans()); ++s) {
      for (int64_t head = 0; head < a.num_kv_heads; head += together) {
        plan.items.push_back({i, tile.part < 0 ? -1 : s, head, std::min(head + together, a.num_kv_heads)});
      }
    }
  }
  return plan;
}

void attend(const Attention& a, Plan& plan, Workspace& own, int64_t index) {
  const Item& item = plan.items[index];
  start_rows(a, plan.tiles[item.tile], item, own.rows);
  const int64_t count = int64_t(own.rows.size());
  const bool blocked = plan.tiles[item.tile].blocked;
  const int64_t keys = blocked ? kBlock : kChunk;
  const int64_t floats = count * (plan.width + keys + 2 * plan.row_floats()) +
                         (blocked ? 8 + 2 * kBlock : 2 * kChunk) * plan.width + 16;
  if (int64_t(own.memory.size()) < floats) own.memory.resize(size_t(floats));
  if (int64_t(own.passes.size()) < count) own.passes.resize(size_t(count));
  Scratch scratch = {own.rows.data(), count / (item.end_head - item.first_head), plan.width};
  // On a cache line: a load across two of them is two loads.
  scratch.query = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(own.memory.data()) + 63) / 64 * 64);
  scratch.span = scratch.query + count * plan.width;
  float* const merged = scratch.span + count * plan.row_floats();
  scratch.scores = merged + count * plan.row_floats();
  scratch.passes = own.passes.data();
  scratch.keys = scratch.scores + count * keys;
  scratch.values = scratch.keys + (blocked ? 8 : kChunk) * plan.width;
  scratch.turned = scratch.values + keys * plan.width;  // of a blocked tile
  attend_item(a, plan, item, own.rows, scratch, merged);
}

void merge(const Attention& a, Plan& plan, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Tile& tile = plan.tiles[plan.apart[i]];
    const int64_t rows = tile.count * a.num_heads;
    for (int64_t r = 0; r < rows; ++r) {
      const Partial first = partial_row(plan.partials.data(), plan.width, tile.part + r);
      for (int64_t s = 1; s < tile.spans(); ++s) {
        merge_into(first, partial_row(plan.partials.data(), plan.width, tile.part + s * rows + r), plan.width);
      }
      write_out(a, tile.first_token + r / a.num_heads, r % a.num_heads, first);
    }
  }
}

}  // namespace khub::cpu
