// Attention of one tile of query tokens over its sequence's paged keys and values, flash style: keys in
// chunks, a running maximum and sum per row. Included inside a namespace after lanes.h, once per instruction
// set.

static constexpr int64_t kChunk = 32;  // keys at a time; chunks start at multiples of it in every sequence

struct Row {
  int64_t token;
  int64_t head;
  int64_t first_key;  // the keys this row sees: [first_key, end_key)
  int64_t end_key;
  float maximum;
  float total;
};

struct Scratch {
  int64_t width;  // the head size, rounded up to whole vectors
  std::vector<Row> rows;
  std::vector<float> query, output;  // [rows, width]
  std::vector<float> keys, values;   // [kChunk, width]
};

// The head at `from` as `width` contiguous floats: in place where it is that already, else in `buffer`.
template <class T>
static const float* widen(const T* from, const CacheView& view, int64_t head_size, int64_t width,
                          float* buffer) {
  const bool contiguous = view.chunk == head_size && view.dim_stride == 1;
  if constexpr (std::is_same_v<T, float>) {
    if (contiguous && width == head_size) return from;
  }
  if (contiguous) {
    int64_t d = 0;
    for (; d + kLanes <= head_size; d += kLanes) store(buffer + d, load(from + d));
    if (d < head_size) store(buffer + d, load_part(from + d, head_size - d));
    return buffer;
  }
  for (int64_t start = 0, d = 0; d < head_size; start += view.chunk_stride) {
    for (int64_t i = 0; i < view.chunk && d < head_size; ++i, ++d) {
      buffer[d] = khub::to_float(from[start + i * view.dim_stride]);
    }
  }
  return buffer;
}

static void start_rows(const Attention& a, const Tile& tile, int64_t kv_head, std::vector<Row>& rows) {
  const int64_t group = a.num_heads / a.num_kv_heads;
  const int64_t query_end = a.query_start_loc ? a.query_start_loc[tile.seq + 1] : tile.seq + 1;
  const int64_t seq_len = a.seq_lens[tile.seq];
  rows.clear();
  for (int64_t token = tile.first_token; token < tile.first_token + tile.count; ++token) {
    const int64_t position = seq_len - query_end + token;
    const int64_t end_key = a.causal ? std::min(position + 1, seq_len) : seq_len;
    const int64_t first_key = a.window ? std::max<int64_t>(0, position + 1 - a.window) : 0;
    for (int64_t i = 0; i < group; ++i) {
      rows.push_back({token, kv_head * group + i, first_key, end_key, -INFINITY, 0.0f});
    }
  }
}

// scores[k] for k in [begin, end): the scaled and masked logits of one row against the chunk's keys.
static void score(const float* query, const float* const* keys, int64_t width, int64_t begin, int64_t end,
                  float* scores) {
  int64_t k = begin;
  for (; k + 4 <= end; k += 4) {
    f32x8 s0{}, s1{}, s2{}, s3{};
    for (int64_t d = 0; d < width; d += kLanes) {
      const f32x8 q = load(query + d);
      s0 += q * load(keys[k] + d);
      s1 += q * load(keys[k + 1] + d);
      s2 += q * load(keys[k + 2] + d);
      s3 += q * load(keys[k + 3] + d);
    }
    scores[k] = sum(s0);
    scores[k + 1] = sum(s1);
    scores[k + 2] = sum(s2);
    scores[k + 3] = sum(s3);
  }
  for (; k < end; ++k) {
    f32x8 s{};
    for (int64_t d = 0; d < width; d += kLanes) s += load(query + d) * load(keys[k] + d);
    scores[k] = sum(s);
  }
}

// output = output * correction + sum over k of weights[k] * values[k]. The chunk is summed on its own first:
// over a long context that keeps the rounding error of the running sum small.
template <int kVectors>
static void accumulate(const float* weights, const float* const* values, int64_t begin, int64_t end,
                       int64_t d, float correction, float* output) {
  f32x8 partial[kVectors] = {};
  for (int64_t k = begin; k < end; ++k) {
    const f32x8 weight = splat(weights[k]);
    for (int v = 0; v < kVectors; ++v) partial[v] += weight * load(values[k] + d + v * kLanes);
  }
  for (int v = 0; v < kVectors; ++v) {
    float* to = output + d + v * kLanes;
    store(to, load(to) * correction + partial[v]);
  }
}

// One row against the keys [begin, end) of the chunk that starts at `chunk_start`.
static void update_row(const Attention& a, Row& row, int64_t position, int64_t chunk_start, int64_t begin,
                       int64_t end, const float* const* keys, const float* const* values, int64_t width,
                       const float* query, float* output) {
  alignas(32) float scores[kChunk];
  for (float& s : scores) s = -INFINITY;
  score(query, keys, width, begin, end, scores);
  if (a.softcap > 0) {
    for (int64_t k = begin; k < end; ++k) scores[k] = a.softcap * std::tanh(scores[k] / a.softcap);
  }
  if (a.alibi_slopes) {
    const float slope = a.alibi_slopes[row.head];
    for (int64_t k = begin; k < end; ++k) scores[k] += slope * float(chunk_start + k - position);
  }
  float maximum = row.maximum;
  for (int64_t k = begin; k < end; ++k) maximum = scores[k] > maximum ? scores[k] : maximum;
  const float correction = row.maximum == maximum ? 1.0f : std::exp(row.maximum - maximum);
  f32x8 total{};
  for (int64_t k = 0; k < kChunk; k += kLanes) {
    const f32x8 weights = exp(load(scores + k) - maximum);
    store(scores + k, weights);
    total += weights;
  }
  row.maximum = maximum;
  row.total = row.total * correction + sum(total);
  int64_t d = 0;
  for (; d + 4 * kLanes <= width; d += 4 * kLanes) {
    accumulate<4>(scores, values, begin, end, d, correction, output);
  }
  for (; d < width; d += kLanes) accumulate<1>(scores, values, begin, end, d, correction, output);
}

template <class T>
static void attend_tile(const Attention& a, const Tile& tile, int64_t kv_head, Scratch& scratch) {
  const int64_t width = scratch.width;
  const int64_t seq_len = a.seq_lens[tile.seq];
  const int64_t query_end = a.query_start_loc ? a.query_start_loc[tile.seq + 1] : tile.seq + 1;
  start_rows(a, tile, kv_head, scratch.rows);
  std::vector<Row>& rows = scratch.rows;
  scratch.query.assign(rows.size() * width, 0.0f);
  scratch.output.assign(rows.size() * width, 0.0f);

  int64_t first_key = seq_len, end_key = 0;
  for (size_t r = 0; r < rows.size(); ++r) {
    const T* from = static_cast<const T*>(a.query) + rows[r].token * a.query_token_stride +
                    rows[r].head * a.query_head_stride;
    for (int64_t d = 0; d < a.head_size; ++d) {
      scratch.query[r * width + d] = khub::to_float(from[d]) * a.scale;
    }
    first_key = std::min(first_key, rows[r].first_key);
    end_key = std::max(end_key, rows[r].end_key);
  }

  const int32_t* table = a.block_tables + tile.seq * a.block_table_stride;
  const float* keys[kChunk];
  const float* values[kChunk];
  for (int64_t start = first_key / kChunk * kChunk; start < end_key; start += kChunk) {
    const int64_t chunk_begin = std::max<int64_t>(first_key - start, 0);
    const int64_t chunk_end = std::min(end_key - start, kChunk);
    for (int64_t k = chunk_begin; k < chunk_end; ++k) {
      const int64_t block = table[(start + k) / a.block_size];
      const int64_t slot = (start + k) % a.block_size;
      keys[k] = widen(static_cast<const T*>(a.key.data) + block * a.key.block_stride +
                          slot * a.key.slot_stride + kv_head * a.key.head_stride,
                      a.key, a.head_size, width, scratch.keys.data() + k * width);
      values[k] = widen(static_cast<const T*>(a.value.data) + block * a.value.block_stride +
                            slot * a.value.slot_stride + kv_head * a.value.head_stride,
                        a.value, a.head_size, width, scratch.values.data() + k * width);
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      const int64_t begin = std::max(rows[r].first_key - start, chunk_begin);
      const int64_t end = std::min(rows[r].end_key - start, chunk_end);
      if (begin >= end) continue;
      const int64_t position = seq_len - query_end + rows[r].token;
      update_row(a, rows[r], position, start, begin, end, keys, values, width,
                 scratch.query.data() + r * width, scratch.output.data() + r * width);
    }
  }

  for (size_t r = 0; r < rows.size(); ++r) {
    const Row& row = rows[r];
    const bool empty = row.first_key >= row.end_key;
    T* to = static_cast<T*>(a.out) + row.token * a.out_token_stride + row.head * a.out_head_stride;
    for (int64_t d = 0; d < a.head_size; ++d) {
      khub::from_float(empty ? 0.0f : scratch.output[r * width + d] / row.total, to + d);
    }
    if (a.lse) {
      a.lse[row.token * a.num_heads + row.head] = empty ? -INFINITY : row.maximum + std::log(row.total);
    }
  }
}

template <class T>
static void attend_items(const Attention& a, const std::vector<Tile>& tiles, int64_t begin, int64_t end) {
  Scratch scratch;
  scratch.width = (a.head_size + kLanes - 1) / kLanes * kLanes;
  scratch.keys.assign(kChunk * scratch.width, 0.0f);
  scratch.values.assign(kChunk * scratch.width, 0.0f);
  const int64_t num_tiles = int64_t(tiles.size());
  for (int64_t item = begin; item < end; ++item) {
    attend_tile<T>(a, tiles[item % num_tiles], item / num_tiles, scratch);
  }
}

static void attend(const Attention& a, const std::vector<Tile>& tiles, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32: return attend_items<float>(a, tiles, begin, end);
    case DType::f16: return attend_items<Half>(a, tiles, begin, end);
    case DType::bf16: return attend_items<BFloat16>(a, tiles, begin, end);
  }
}
