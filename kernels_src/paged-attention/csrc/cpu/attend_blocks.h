// Attention of a long chunk of query tokens over one span of keys, as two blocked products: keys go by kBlock at a time,
// turned so that a lane is a key, and meet all rows of the tile; weights then meet the values, a lane an element of a
// head. Included inside a namespace after attend_impl.h, once per instruction set.
//
// Every sum runs in the order of its terms, whatever rows are worked on beside it: a row's result does not depend on the
// tile it is in. It is not the order in which few tokens are summed.
//
// Roofline: 4 * rows * keys * head operations at the rate of FMAs; a key or value is loaded from memory once for a tile,
// and from the first cache once for kRowsAtOnce rows.

static constexpr int64_t kRowsAtOnce = 6;  // times two vectors: all registers but four hold sums
static constexpr int64_t kPair = 2 * kLanes;
static constexpr int64_t kSoon = 4;  // keys

// One head as floats, zeros up to `stride`. What stays in the cache lies a power of two apart, so that all of it would
// have to be in the same few lines of the first processor cache: it is copied, floats too.
template <class T>
KHUB_INLINE void widen_head(const T* from, const CacheView& view, int64_t head_size, int64_t stride, float* to) {
  if constexpr (sizeof(T) > 1) {
    if (view.chunk >= head_size && view.dim_stride == 1 && head_size % kLanes == 0) {
      for (int64_t d = 0; d < head_size; d += kLanes) store(to + d, load(from + d));
      for (int64_t d = head_size; d < stride; ++d) to[d] = 0.0f;
      return;
    }
  }
  copy_head(from, view, head_size, stride, to);
}

// Eight keys [8, stride]: turned[d * kBlock + k] = keys[k * stride + d]. `stride` is a multiple of 8.
static void turn_keys(const float* keys, int64_t stride, float* turned) {
  for (int64_t d = 0; d < stride; d += 8) {
    f32x8 rows[8], columns[8];
    for (int i = 0; i < 8; ++i) std::memcpy(&rows[i], keys + i * stride + d, sizeof(rows[i]));
    transpose(rows, columns);
    for (int i = 0; i < 8; ++i) std::memcpy(turned + (d + i) * kBlock, &columns[i], sizeof(columns[i]));
  }
}

// scores[r * kBlock + k] = query row r . key k.
template <int kRows>
static void multiply_keys(const float* query, int64_t stride, const float* turned, int64_t head_size, float* scores) {
  for (int64_t k = 0; k < kBlock; k += kPair) {
    f32v sums[kRows][2] = {};
    for (int64_t d = 0; d < head_size; ++d) {
      const f32v first = load(turned + d * kBlock + k), second = load(turned + d * kBlock + k + kLanes);
      for (int r = 0; r < kRows; ++r) {
        const f32v q = splat(query[r * stride + d]);
        sums[r][0] += q * first;
        sums[r][1] += q * second;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      store(scores + r * kBlock + k, sums[r][0]);
      store(scores + r * kBlock + k + kLanes, sums[r][1]);
    }
  }
}

// output[r] += weights of row r times values [begin, end).
template <int kRows>
static void add_block(const float* weights, const float* values, int64_t begin, int64_t end, int64_t width,
                      float* output, int64_t stride) {
  for (int64_t d = 0; d < width; d += kPair) {
    f32v sums[kRows][2];
    for (int r = 0; r < kRows; ++r) {
      sums[r][0] = load(output + r * stride + d);
      sums[r][1] = load(output + r * stride + d + kLanes);
    }
    for (int64_t k = begin; k < end; ++k) {
      const f32v first = load(values + k * width + d), second = load(values + k * width + d + kLanes);
      for (int r = 0; r < kRows; ++r) {
        const f32v weight = splat(weights[r * kBlock + k]);
        sums[r][0] += weight * first;
        sums[r][1] += weight * second;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      store(output + r * stride + d, sums[r][0]);
      store(output + r * stride + d + kLanes, sums[r][1]);
    }
  }
}

// The rows' own ranges of keys may begin and end apart: what all of them see is added together, the rest row by row, in
// the order of the keys. A value that a row does not see is not multiplied: it may be no number.
template <int kRows>
static void add_values_of(const Pass* seen, const float* weights, const float* values, int64_t width,
                          float* output, int64_t stride) {
  int64_t begin = seen[0].begin, end = seen[0].end;
  for (int r = 1; r < kRows; ++r) {
    begin = seen[r].begin > begin ? seen[r].begin : begin;
    end = seen[r].end < end ? seen[r].end : end;
  }
  if (begin > end) begin = end = kBlock;  // nothing in common: each row by itself
  const auto alone = [&](int r, int64_t from, int64_t until) {
    if (from < until) add_block<1>(weights + r * kBlock, values, from, until, width, output + r * stride, stride);
  };
  for (int r = 0; r < kRows; ++r) alone(r, seen[r].begin, seen[r].end < begin ? seen[r].end : begin);
  if (begin < end) add_block<kRows>(weights, values, begin, end, width, output, stride);
  for (int r = 0; r < kRows; ++r) alone(r, seen[r].begin > end ? seen[r].begin : end, seen[r].end);
}

// Calls body with the number of rows, up to kRowsAtOnce of them, as a constant.
template <class Body>
KHUB_INLINE void in_turns(int64_t rows, const Body& body) {
  int64_t r = 0;
  for (; r + kRowsAtOnce <= rows; r += kRowsAtOnce) body(r, std::integral_constant<int, kRowsAtOnce>{});
  for (; r + 2 <= rows; r += 2) body(r, std::integral_constant<int, 2>{});
  if (r < rows) body(r, std::integral_constant<int, 1>{});
}

// The logits of a row for the keys [begin, end) of a block become weights, the row's sums are corrected for them.
static void soften_block(const Attention& a, const Row& row, int64_t start, int64_t begin, int64_t end, float* scores,
                         const Partial& sums, int64_t width) {
  for (int64_t k = 0; k < begin; ++k) scores[k] = -INFINITY;
  for (int64_t k = end; k < kBlock; ++k) scores[k] = -INFINITY;
  if (a.softcap > 0) {
    for (int64_t k = begin; k < end; ++k) scores[k] = a.softcap * std::tanh(scores[k] / a.softcap);
  }
  if (a.alibi_slopes) {
    const float slope = a.alibi_slopes[row.head];
    for (int64_t k = begin; k < end; ++k) scores[k] += slope * float(start + k - row.visible.position);
  }
  const float correction = to_weights<kBlock>(scores, sums);
  if (correction == 1.0f) return;
  for (int64_t d = 0; d < width; d += kLanes) store(sums.output + d, load(sums.output + d) * correction);
}

// T is the query's type, Stored the cache's. One KV head.
template <class T, class Stored>
static void attend_blocks(const Attention& a, const Tile& tile, const Item& item, int64_t span,
                          const Scratch& scratch) {
  const int64_t rows = scratch.rows_per_head, stride = scratch.stride, floats = row_floats(stride);
  const int64_t width = (a.head_size + kPair - 1) / kPair * kPair;
  start_query<T, float>(a, rows, scratch);
  const int64_t first_key = tile.first_key > span * kSpan ? tile.first_key : span * kSpan;
  const int64_t end_key = tile.end_key < (span + 1) * kSpan ? tile.end_key : (span + 1) * kSpan;
  const int64_t head_bytes = a.key.chunk >= a.head_size ? a.head_size * int64_t(sizeof(Stored)) : 0;
  const int32_t* table = a.block_tables + tile.seq * a.block_table_stride;
  const Stored* keys = static_cast<const Stored*>(a.key.data) + item.first_head * a.key.head_stride;
  const Stored* values = static_cast<const Stored*>(a.value.data) + item.first_head * a.value.head_stride;
  for (int64_t start = first_key / kBlock * kBlock; start < end_key; start += kBlock) {
    const int64_t begin = first_key > start ? first_key - start : 0;
    const int64_t end = end_key - start < kBlock ? end_key - start : kBlock;
    const Stored* places[kBlock][2];
    for (int64_t k = begin; k < end; ++k) {
      const int64_t id = table[(start + k) / a.block_size], slot = (start + k) % a.block_size;
      places[k][0] = keys + id * a.key.block_stride + slot * a.key.slot_stride;
      places[k][1] = values + id * a.value.block_stride + slot * a.value.slot_stride;
    }
    for (int64_t k = 0; k < kBlock; ++k) {
      // One head of a slot is too little for the processor to see where the next one is.
      if (k + kSoon < end && k >= begin) {
        ask(reinterpret_cast<const char*>(places[k + kSoon][0]), head_bytes);
        ask(reinterpret_cast<const char*>(places[k + kSoon][1]), head_bytes);
      }
      float *key = scratch.keys + k % 8 * stride, *value = scratch.values + k * width;
      if (k < begin || k >= end) {
        std::memset(key, 0, size_t(stride) * sizeof(float));
      } else {
        widen_head(places[k][0], a.key, a.head_size, stride, key);
        widen_head(places[k][1], a.value, a.head_size, width, value);
      }
      if (k % 8 == 7) turn_keys(scratch.keys, stride, scratch.turned + k - 7);
    }
    in_turns(rows, [&](int64_t r, auto count) {
      multiply_keys<count>(scratch.query + r * stride, stride, scratch.turned, a.head_size, scratch.scores + r * kBlock);
    });
    for (int64_t r = 0; r < rows; ++r) {
      const Visible& visible = scratch.rows[r].visible;
      Pass& seen = scratch.passes[r];
      seen.begin = visible.first_key - start > begin ? visible.first_key - start : begin;
      seen.end = visible.end_key - start < end ? visible.end_key - start : end;
      if (seen.begin >= seen.end) {
        seen.begin = seen.end = 0;
        continue;
      }
      soften_block(a, scratch.rows[r], start, seen.begin, seen.end, scratch.scores + r * kBlock,
                   partial_row(scratch.span, stride, r), width);
    }
    in_turns(rows, [&](int64_t r, auto count) {
      add_values_of<count>(scratch.passes + r, scratch.scores + r * kBlock, scratch.values, width,
                           partial_row(scratch.span, stride, r).output, floats);
    });
  }
}
