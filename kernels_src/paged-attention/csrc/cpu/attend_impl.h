// Attention of an item over one span of keys, flash style: keys in chunks, a running maximum and sum per row.
// Included inside a namespace after attend_dots.h, once per instruction set.

// A chunk of keys as it is worked on: in place, or copies of one head.
template <class In>
struct Keys {
  int64_t start;       // the first key's position
  int64_t begin, end;  // those that are in the span
  const In* keys[kChunk];  // of the item's first KV head
  const In* values[kChunk];
};

// What chunks of an item have in common.
struct Heads {
  int64_t width;  // floats of a head, whole steps
  int64_t key_stride, value_stride;  // from one KV head to the next
  int64_t slot_bytes;                // of all the item's heads
};

// `In` is the type that keys and values are read as: the cache's in place, float where they are copied.
template <class T, class In>
static void start_query(const Attention& a, int64_t rows, const Scratch& scratch) {
  const float scale = a.scale * (a.k_scale ? *a.k_scale : 1.0f) * kUnit<In>;
  for (int64_t r = 0; r < rows; ++r) {
    const Row& row = scratch.rows[r];
    const T* from =
        static_cast<const T*>(a.query) + row.token * a.query_token_stride + row.head * a.query_head_stride;
    float* to = scratch.query + r * scratch.stride;
    for (int64_t d = 0; d < scratch.stride; ++d) to[d] = 0.0f;
    for (int64_t d = 0; d < a.head_size; ++d) to[to_lanes<In>(d)] = khub::to_float(from[d]) * scale;
  }
}

// Pointers past either end repeat the nearest slot that is seen: loads are whole, what they bring is masked.
template <class T>
static void find_chunk(const Attention& a, const Tile& tile, int64_t head, int64_t end_key, Keys<T>& chunk) {
  const int32_t* table = a.block_tables + tile.seq * a.block_table_stride;
  const T* keys = static_cast<const T*>(a.key.data) + head * a.key.head_stride;
  const T* values = static_cast<const T*>(a.value.data) + head * a.value.head_stride;
  chunk.end = end_key - chunk.start < kChunk ? end_key - chunk.start : kChunk;
  for (int64_t k = 0; k < kChunk; ++k) {
    const int64_t key = chunk.start + (k < chunk.begin ? chunk.begin : k < chunk.end ? k : chunk.end - 1);
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

// kCount logits become weights. Returns the correction of what the row has summed so far.
template <int64_t kCount>
KHUB_INLINE float to_weights(float* scores, const Partial& sums) {
  f32v most = splat(*sums.maximum);
  for (int64_t k = 0; k < kCount; k += kLanes) most = larger(load(scores + k), most);
  const float maximum = largest(most);
  const float correction = *sums.maximum == maximum ? 1.0f : std::exp(*sums.maximum - maximum);
  f32v total{};
  for (int64_t k = 0; k < kCount; k += kLanes) {
    const f32v weights = exp(load(scores + k) - maximum);
    store(scores + k, weights);
    total += weights;
  }
  *sums.maximum = maximum;
  *sums.total = *sums.total * correction + sum(total);
  return correction;
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
  return to_weights<kChunk>(scores, sums);
}

// The passes of the rows [first, last) over a chunk; rows of one token see the same keys and go in pairs.
static int64_t find_passes(const Attention& a, int64_t first, int64_t last, int64_t start, int64_t chunk_begin,
                           int64_t chunk_end, const Scratch& scratch) {
  int64_t count = 0;
  for (int64_t r = first; r < last;) {
    const Row& row = scratch.rows[r];
    const int64_t since = row.visible.first_key - start, until = row.visible.end_key - start;
    const int64_t begin = since > chunk_begin ? since : chunk_begin, end = until < chunk_end ? until : chunk_end;
    const bool two = r + 1 < last && scratch.rows[r + 1].token == row.token && (r + 1) % scratch.rows_per_head;
    const uint32_t seen = masked(a, row.visible, start, bits_between(begin, end));
    if (seen) {
      scratch.passes[count++] = {r, r / scratch.rows_per_head - first / scratch.rows_per_head, two,
                                 r % scratch.rows_per_head == 0, __builtin_ctz(seen), kChunk - __builtin_clz(seen),
                                 seen, {1.0f, 1.0f}};
    }
    r += two ? 2 : 1;
  }
  return count;
}

// A group's slots as a pass reads them. A slot that a mask hides is not read, in its place one that is seen.
template <class In>
struct Shown {
  const In* const* slots;
  const In* own[kGroup];

  Shown(const Pass& pass, const In* const* chunk, int64_t group) : slots(chunk + group) {
    if (pass.seen == bits_between(pass.begin, pass.end)) return;
    for (int64_t k = 0; k < kGroup; ++k) {
      own[k] = chunk[pass.seen >> (group + k) & 1u ? group + k : pass.begin];
    }
    slots = own;
  }
};

// The group `turns` groups after a chunk's first: keys, then values, then the next chunk's.
template <class In>
static const char* const* group_at(const Keys<In>& chunk, const Keys<In>* next, int64_t turns) {
  constexpr int64_t kGroups = kChunk / kGroup;
  const Keys<In>* of = turns < 2 * kGroups ? &chunk : next;
  turns %= 2 * kGroups;
  if (!of) return nullptr;
  const In* const* slots = turns < kGroups ? of->keys + turns * kGroup : of->values + (turns - kGroups) * kGroup;
  return reinterpret_cast<const char* const*>(slots);
}

static constexpr int64_t kAhead = 1;  // groups, of 8 slots each: near enough to stay in the second cache

// The rows [first, last) over a chunk. A group's slots go by in the order of memory, all heads of them: what comes
// next is asked for shortly before, so that it is still near.
template <class In>
static void attend_chunk(const Attention& a, int64_t first, int64_t last, const Heads& heads, const Keys<In>& chunk,
                         const Keys<In>* next, const Scratch& scratch) {
  const int64_t stride = scratch.stride, share = kGroup * heads.width * int64_t(sizeof(In));
  const int64_t passes = find_passes(a, first, last, chunk.start, chunk.begin, chunk.end, scratch);
  for (int64_t group = 0; group < kChunk; group += kGroup) {
    const char* const* later = group_at(chunk, next, group / kGroup + kAhead);
    for (int64_t p = 0; p < passes; ++p) {
      const Pass& pass = scratch.passes[p];
      if (pass.begin >= group + kGroup || pass.end <= group) continue;
      const Ahead ahead = {pass.asks && heads.slot_bytes ? later : nullptr, heads.slot_bytes, pass.head * share};
      const Shown<In> keys(pass, chunk.keys, group);
      const auto dot = pass.two ? dot_group<2, In> : dot_group<1, In>;
      dot(scratch.query + pass.row * stride, keys.slots, pass.head * heads.key_stride, ahead, stride, heads.width,
          pass.begin - group, pass.end - group, scratch.scores + pass.row * kChunk + group);
    }
  }
  for (int64_t p = 0; p < passes; ++p) {
    Pass& pass = scratch.passes[p];
    for (int64_t r = pass.row; r < pass.row + (pass.two ? 2 : 1); ++r) {
      pass.correction[r - pass.row] =
          soften(a, scratch.rows[r], chunk.start, pass.begin, pass.end, pass.seen, scratch.scores + r * kChunk,
                 partial_row(scratch.span, stride, r));
    }
  }
  for (int64_t group = 0; group < kChunk; group += kGroup) {
    const char* const* later = group_at(chunk, next, (kChunk + group) / kGroup + kAhead);
    for (int64_t p = 0; p < passes; ++p) {
      Pass& pass = scratch.passes[p];
      if (pass.begin >= group + kGroup || pass.end <= group) continue;
      const Ahead ahead = {pass.asks && heads.slot_bytes ? later : nullptr, heads.slot_bytes, pass.head * share};
      const Shown<In> values(pass, chunk.values, group);
      const auto weigh = pass.two ? weigh_group<2, In> : weigh_group<1, In>;
      const int64_t begin = pass.begin > group ? pass.begin - group : 0;
      const int64_t end = pass.end - group < kGroup ? pass.end - group : kGroup;
      weigh(scratch.scores + pass.row * kChunk + group, values.slots, pass.head * heads.value_stride, ahead, begin, end,
            pass.correction, partial_row(scratch.span, stride, pass.row).output, row_floats(stride), heads.width);
      pass.correction[0] = pass.correction[1] = 1.0f;
    }
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

// Of a cache that cannot be read in place: `head` of the item's.
template <class T>
static void copy_chunk(const Attention& a, const Keys<T>& chunk, int64_t head, const Scratch& scratch,
                       Keys<float>& copies) {
  copies.start = chunk.start, copies.begin = chunk.begin, copies.end = chunk.end;
  for (int64_t k = 0; k < kChunk; ++k) {
    const int64_t at = k < chunk.begin ? chunk.begin : k < chunk.end ? k : chunk.end - 1;
    const int64_t stride = scratch.stride;
    copies.keys[k] = scratch.keys + at * stride;
    copies.values[k] = scratch.values + at * stride;
    if (at != k) continue;
    copy_head(chunk.keys[k] + head * a.key.head_stride, a.key, a.head_size, stride, scratch.keys + k * stride);
    copy_head(chunk.values[k] + head * a.value.head_stride, a.value, a.head_size, stride,
              scratch.values + k * stride);
  }
}

// The partial rows, which have been summed in the order of the lanes, in that of the head and in its unit.
template <class In>
static void order_outputs(int64_t rows, int64_t head_size, const Scratch& scratch) {
  if (!kEvenThenOdd<In>) return;
  float lanes[kMaxHead];
  for (int64_t r = 0; r < rows; ++r) {
    float* output = partial_row(scratch.span, scratch.stride, r).output;
    std::memcpy(lanes, output, size_t(head_size) * sizeof(float));
    for (int64_t d = 0; d < head_size; ++d) output[d] = lanes[to_lanes<In>(d)] * kUnit<In>;
  }
}

// T is the query's type, Stored the cache's.
template <class T, class Stored, class In, bool kInPlace>
static void attend_keys(const Attention& a, const Tile& tile, const Item& item, int64_t span,
                        const Scratch& scratch) {
  const int64_t heads = item.end_head - item.first_head, rows = scratch.rows_per_head;
  start_query<T, In>(a, heads * rows, scratch);
  const int64_t first_key = tile.first_key > span * kSpan ? tile.first_key : span * kSpan;
  const int64_t end_key = tile.end_key < (span + 1) * kSpan ? tile.end_key : (span + 1) * kSpan;
  const int64_t width = (a.head_size + kStep - 1) / kStep * kStep;
  const Heads strides = {width, a.key.head_stride, a.value.head_stride,
                         kInPlace ? heads * a.head_size * int64_t(sizeof(Stored)) : 0};
  Keys<Stored> chunks[2];
  chunks[0].begin = first_key % kChunk;
  chunks[0].start = first_key - chunks[0].begin;
  find_chunk(a, tile, item.first_head, end_key, chunks[0]);
  for (int turn = 0; chunks[turn].start < end_key; turn ^= 1) {
    Keys<Stored>& next = chunks[turn ^ 1];
    next.begin = 0;
    next.start = chunks[turn].start + kChunk;
    const bool more = next.start < end_key;
    if (more) find_chunk(a, tile, item.first_head, end_key, next);
    if constexpr (kInPlace) {
      attend_chunk<Stored>(a, 0, heads * rows, strides, chunks[turn], more ? &next : nullptr, scratch);
    } else {
      for (int64_t head = 0; head < heads; ++head) {
        Keys<float> copies;
        copy_chunk(a, chunks[turn], head, scratch, copies);
        attend_chunk<float>(a, head * rows, (head + 1) * rows, strides, copies, nullptr, scratch);
      }
    }
  }
  order_outputs<In>(heads * rows, a.head_size, scratch);
}

template <class T, class Stored>
static void attend_blocks(const Attention& a, const Tile& tile, const Item& item, int64_t span,
                          const Scratch& scratch);

template <class T, class Stored>
static void attend_stored(const Attention& a, const Tile& tile, const Item& item, int64_t span,
                          const Scratch& scratch) {
  if (tile.blocked) return attend_blocks<T, Stored>(a, tile, item, span, scratch);
  const auto contiguous = [&](const CacheView& view) { return view.chunk == a.head_size && view.dim_stride == 1; };
  if (contiguous(a.key) && contiguous(a.value) && a.head_size % kStep == 0) {
    return attend_keys<T, Stored, Stored, true>(a, tile, item, span, scratch);
  }
  attend_keys<T, Stored, float, false>(a, tile, item, span, scratch);
}

template <class T>
static void attend_as(const Attention& a, const Tile& tile, const Item& item, int64_t span,
                      const Scratch& scratch) {
  switch (a.cache_type) {
    case CacheType::same: return attend_stored<T, T>(a, tile, item, span, scratch);
    case CacheType::e4m3: return attend_stored<T, E4M3>(a, tile, item, span, scratch);
    case CacheType::e5m2: return attend_stored<T, E5M2>(a, tile, item, span, scratch);
  }
}

static void attend_span(const Attention& a, const Tile& tile, const Item& item, int64_t span,
                        const Scratch& scratch) {
  switch (a.dtype) {
    case DType::f32: return attend_as<float>(a, tile, item, span, scratch);
    case DType::f16: return attend_as<Half>(a, tile, item, span, scratch);
    case DType::bf16: return attend_as<BFloat16>(a, tile, item, span, scratch);
  }
}
