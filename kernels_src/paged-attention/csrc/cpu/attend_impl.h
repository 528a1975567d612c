// Attention of an item over one span of keys, flash style: keys in chunks, a running maximum and sum per row.
// Included inside a namespace after lanes.h and attend_dots.h, once per instruction set.

// A chunk's slots, as pointers to the first KV head of the cache.
template <class T>
struct Chunk {
  const T* keys[kChunk];
  const T* values[kChunk];
};

// `In` is the type that keys and values are read as: T in place, float where they are copied.
template <class T, class In>
static void start_query(const Attention& a, int64_t rows, const Scratch& scratch) {
  for (int64_t r = 0; r < rows; ++r) {
    const Row& row = scratch.rows[r];
    const T* from =
        static_cast<const T*>(a.query) + row.token * a.query_token_stride + row.head * a.query_head_stride;
    float* to = scratch.query + r * scratch.stride;
    for (int64_t d = 0; d < scratch.stride; ++d) to[d] = 0.0f;
    for (int64_t d = 0; d < a.head_size; ++d) to[to_lanes<In>(d)] = khub::to_float(from[d]) * a.scale;
  }
}

// Pointers past either end repeat the nearest slot that is seen: loads are whole, what they bring is masked.
template <class T>
static void find_chunk(const Attention& a, const Tile& tile, int64_t start, int64_t begin, int64_t end,
                       Chunk<T>& chunk) {
  const int32_t* table = a.block_tables + tile.seq * a.block_table_stride;
  const T *keys = static_cast<const T*>(a.key.data), *values = static_cast<const T*>(a.value.data);
  for (int64_t k = 0; k < kChunk; ++k) {
    const int64_t key = start + (k < begin ? begin : k < end ? k : end - 1);
    const int64_t block = table[key / a.block_size], slot = key % a.block_size;
    chunk.keys[k] = keys + block * a.key.block_stride + slot * a.key.slot_stride;
    chunk.values[k] = values + block * a.value.block_stride + slot * a.value.slot_stride;
  }
}

// The keys of a chunk that a row sees, as the bits of their numbers in it.
static_assert(kChunk == 32, "the keys of a chunk are the bits of a word");

KHUB_INLINE uint32_t bits_between(int64_t begin, int64_t end) {
  return begin < end ? ~0u >> (32 - (end - begin)) << begin : 0u;
}

// Of `within`, those that the row's mask has.
static uint32_t masked(const Attention& a, const Visible& visible, int64_t chunk_start, uint32_t within) {
  if (!visible.bits || chunk_start + kChunk <= visible.tail) return within;
  const auto word = [&](int64_t w) -> uint32_t {
    return w < 0 ? ~0u : w < a.tree_mask_words ? uint32_t(visible.bits[w]) : 0u;
  };
  const int64_t at = chunk_start - visible.tail;  // above -32
  const int64_t first = at < 0 ? -1 : at / 32, shift = at - first * 32;
  return within & uint32_t((uint64_t(word(first + 1)) << 32 | word(first)) >> shift);
}

// The logits of a row for the keys [begin, end) of a chunk become weights, 0 for those that are not in `seen`.
// Returns the correction of what the row has summed so far.
static float soften(const Attention& a, const Row& row, int64_t chunk_start, int64_t begin, int64_t end,
                    uint32_t seen, float* scores, const Partial& sums) {
  for (int64_t k = 0; k < begin; ++k) scores[k] = -INFINITY;
  for (int64_t k = end; k < kChunk; ++k) scores[k] = -INFINITY;
  if (a.softcap > 0) {
    for (int64_t k = begin; k < end; ++k) scores[k] = a.softcap * std::tanh(scores[k] / a.softcap);
  }
  if (a.alibi_slopes) {
    const float slope = a.alibi_slopes[row.head];
    int64_t place = place_of(row.visible, chunk_start + begin) - row.visible.position;
    for (int64_t k = begin; k < end; place += seen >> k++ & 1u) scores[k] += slope * float(place);
  }
  if (seen != bits_between(begin, end)) {
    for (int64_t k = begin; k < end; ++k) scores[k] = seen >> k & 1u ? scores[k] : -INFINITY;
  }
  f32v most = splat(*sums.maximum);
  for (int64_t k = 0; k < kChunk; k += kLanes) most = larger(load(scores + k), most);
  const float maximum = largest(most);
  const float correction = *sums.maximum == maximum ? 1.0f : std::exp(*sums.maximum - maximum);
  f32v total{};
  for (int64_t k = 0; k < kChunk; k += kLanes) {
    const f32v weights = exp(load(scores + k) - maximum);
    store(scores + k, weights);
    total += weights;
  }
  *sums.maximum = maximum;
  *sums.total = *sums.total * correction + sum(total);
  return correction;
}

// What a chunk is to one KV head.
template <class In>
struct Keys {
  int64_t start;       // the first key's position
  int64_t begin, end;  // those that are in the span
  int64_t width;       // floats of a head, whole steps
  const In* keys[kChunk];
  const In* values[kChunk];
  Ahead next_keys, next_values;
};

// kRows rows from `first` that see the keys `seen` of a chunk, of which [begin, end) are the first to the last.
template <int kRows, class In>
static void update_rows(const Attention& a, int64_t first, int64_t begin, int64_t end, uint32_t seen,
                        const Keys<In>& keys, bool ask, const Scratch& scratch) {
  alignas(64) float scores[kRows][kChunk];
  const int64_t stride = scratch.stride;
  dot_keys<kRows>(scratch.query + first * stride, keys.keys, ask ? keys.next_keys : Ahead{}, stride, keys.width,
                  begin, end, scores);
  float correction[kRows];
  for (int r = 0; r < kRows; ++r) {
    correction[r] = soften(a, scratch.rows[first + r], keys.start, begin, end, seen, scores[r],
                           partial_row(scratch.span, stride, first + r));
  }
  float* output = partial_row(scratch.span, stride, first).output;
  weigh_values<kRows>(scores, keys.values, ask ? keys.next_values : Ahead{}, begin, end, correction, output,
                      row_floats(stride), keys.width);
}

// The same, some of them hidden by a mask: a hidden slot is not read, in its place the last one before it is.
template <int kRows, class In>
static void update_masked_rows(const Attention& a, int64_t first, int64_t begin, int64_t end, uint32_t seen,
                               const Keys<In>& keys, bool ask, const Scratch& scratch) {
  Keys<In> shown = keys;
  for (int64_t k = 0, at = begin; k < kChunk; ++k) {
    if (seen >> k & 1u) at = k;
    shown.keys[k] = keys.keys[at];
    shown.values[k] = keys.values[at];
  }
  update_rows<kRows>(a, first, begin, end, seen, shown, ask, scratch);
}

// The rows [first, last) of one KV head over a chunk. Rows of one token see the same keys and go in pairs.
template <class In>
static void attend_chunk(const Attention& a, int64_t first, int64_t last, const Keys<In>& keys,
                         const Scratch& scratch) {
  for (int64_t r = first; r < last;) {
    const Row& row = scratch.rows[r];
    const int64_t since = row.visible.first_key - keys.start, until = row.visible.end_key - keys.start;
    int64_t begin = since > keys.begin ? since : keys.begin, end = until < keys.end ? until : keys.end;
    const bool two = r + 1 < last && scratch.rows[r + 1].token == row.token;
    const bool ask = r == first;
    const uint32_t seen = masked(a, row.visible, keys.start, bits_between(begin, end));
    if (seen) {
      begin = __builtin_ctz(seen), end = kChunk - __builtin_clz(seen);
      const auto update = seen == bits_between(begin, end)
                              ? (two ? update_rows<2, In> : update_rows<1, In>)
                              : (two ? update_masked_rows<2, In> : update_masked_rows<1, In>);
      update(a, r, begin, end, seen, keys, ask, scratch);
    }
    r += two ? 2 : 1;
  }
}

// One head of a slot as floats, and zeros up to `stride`.
template <class T>
static void copy_head(const T* from, const CacheView& view, int64_t head_size, int64_t stride, float* to) {
  for (int64_t d = head_size; d < stride; ++d) to[d] = 0.0f;
  for (int64_t start = 0, d = 0; d < head_size; start += view.chunk_stride) {
    for (int64_t i = 0; i < view.chunk && d < head_size; ++i, ++d) {
      to[d] = khub::to_float(from[start + i * view.dim_stride]);
    }
  }
}

template <class T>
static void head_keys(const Attention& a, const Chunk<T>& chunk, int64_t head, const T** keys, const T** values) {
  for (int64_t k = 0; k < kChunk; ++k) {
    keys[k] = chunk.keys[k] + head * a.key.head_stride;
    values[k] = chunk.values[k] + head * a.value.head_stride;
  }
}

// Of a cache that cannot be read in place.
template <class T>
static void head_copies(const Attention& a, const Chunk<T>& chunk, int64_t head, const Scratch& scratch,
                        Keys<float>& keys) {
  for (int64_t k = 0; k < kChunk; ++k) {
    const int64_t at = k < keys.begin ? keys.begin : k < keys.end ? k : keys.end - 1;
    keys.keys[k] = scratch.keys + at * scratch.stride;
    keys.values[k] = scratch.values + at * scratch.stride;
    if (at != k) continue;
    const int64_t stride = scratch.stride;
    copy_head(chunk.keys[k] + head * a.key.head_stride, a.key, a.head_size, stride, scratch.keys + k * stride);
    copy_head(chunk.values[k] + head * a.value.head_stride, a.value, a.head_size, stride,
              scratch.values + k * stride);
  }
}

// The partial rows, which have been summed in the order of the lanes, in that of the head.
template <class In>
static void order_outputs(int64_t rows, int64_t head_size, const Scratch& scratch) {
  if (!std::is_same_v<In, khub::BFloat16>) return;
  float lanes[kMaxHead];
  for (int64_t r = 0; r < rows; ++r) {
    float* output = partial_row(scratch.span, scratch.stride, r).output;
    std::memcpy(lanes, output, size_t(head_size) * sizeof(float));
    for (int64_t d = 0; d < head_size; ++d) output[d] = lanes[to_lanes<In>(d)];
  }
}

template <class T, class In, bool kInPlace>
static void attend_keys(const Attention& a, const Tile& tile, const Item& item, int64_t span,
                        const Scratch& scratch) {
  const int64_t heads = item.end_head - item.first_head, rows = scratch.rows_per_head;
  start_query<T, In>(a, heads * rows, scratch);
  const int64_t first_key = tile.first_key > span * kSpan ? tile.first_key : span * kSpan;
  const int64_t end_key = tile.end_key < (span + 1) * kSpan ? tile.end_key : (span + 1) * kSpan;
  const int64_t head_bytes = a.head_size * int64_t(sizeof(T));
  Chunk<T> chunks[2];
  Keys<In> keys;
  keys.width = (a.head_size + kStep - 1) / kStep * kStep;
  int64_t begin = first_key % kChunk, start = first_key - begin;
  int64_t end = end_key - start < kChunk ? end_key - start : kChunk;
  find_chunk(a, tile, start, begin, end, chunks[0]);
  for (int turn = 0; start < end_key; turn ^= 1) {
    keys.start = start, keys.begin = begin, keys.end = end;
    start += kChunk, begin = 0, end = end_key - start < kChunk ? end_key - start : kChunk;
    const char *later_keys[kChunk], *later_values[kChunk];
    if (start < end_key) {
      find_chunk(a, tile, start, begin, end, chunks[turn ^ 1]);
      for (int64_t k = 0; k < kChunk; ++k) {
        later_keys[k] = reinterpret_cast<const char*>(chunks[turn ^ 1].keys[k] + item.first_head * a.key.head_stride);
        later_values[k] =
            reinterpret_cast<const char*>(chunks[turn ^ 1].values[k] + item.first_head * a.value.head_stride);
      }
    }
    for (int64_t head = item.first_head; head < item.end_head; ++head) {
      const int64_t before = (head - item.first_head) * kChunk * head_bytes;
      keys.next_keys = {start < end_key ? later_keys : nullptr, heads * head_bytes, before};
      keys.next_values = {start < end_key ? later_values : nullptr, heads * head_bytes, before};
      if constexpr (kInPlace) {
        head_keys(a, chunks[turn], head, keys.keys, keys.values);
      } else {
        head_copies(a, chunks[turn], head, scratch, keys);
      }
      const int64_t first = (head - item.first_head) * rows;
      attend_chunk(a, first, first + rows, keys, scratch);
    }
  }
  order_outputs<In>(heads * rows, a.head_size, scratch);
}

template <class T>
static void attend_as(const Attention& a, const Tile& tile, const Item& item, int64_t span,
                      const Scratch& scratch) {
  const auto contiguous = [&](const CacheView& view) { return view.chunk == a.head_size && view.dim_stride == 1; };
  if (contiguous(a.key) && contiguous(a.value) && a.head_size % kStep == 0) {
    return attend_keys<T, T, true>(a, tile, item, span, scratch);
  }
  attend_keys<T, float, false>(a, tile, item, span, scratch);
}

static void attend_span(const Attention& a, const Tile& tile, const Item& item, int64_t span,
                        const Scratch& scratch) {
  switch (a.dtype) {
    case DType::f32: return attend_as<float>(a, tile, item, span, scratch);
    case DType::f16: return attend_as<Half>(a, tile, item, span, scratch);
    case DType::bf16: return attend_as<BFloat16>(a, tile, item, span, scratch);
  }
}
