// Attention on tensor cores, for caches whose heads are rows of 16-byte pieces, of the query's half precision or FP8.
// Included by a file for either, which are compiled side by side.
//
// Rows are pairs of a query token and one of the query heads that share a KV head, so GQA fills the 16 rows of a
// tensor-core tile and each key and value is loaded once for all of them. A strip is 16 rows held by one warp:
// queries and sums in registers, keys and values in shared memory, kKeys of them at a time, the next ones on their way
// while these are multiplied. Softmax runs along the keys (FlashAttention-2, Dao 2023).
//
// A sequence's keys are cut into spans at fixed positions: each is summed on its own, and the sums are merged in the
// order of the spans. Who does the work decides nothing: sequences of few rows have a warp for each span (decode_kernel,
// whose partial sums merge_kernel brings together: Flash-Decoding), long ones a block of four strips that walk the
// spans in turn (prefill_kernel). So a token's result has the same bits alone, in any batch and in any chunk.
//
// Roofline: decode reads every key and value byte once, plus 2 * 16 * (head + 2) * 4 bytes of partial sums for each
// span and KV head, 6 % at 512 keys of 128 in bfloat16 with all 16 rows in use; bound by memory. Prefill does
// 4 * rows * keys * head operations, half of them where causal; bound by mma.sync's rate, which on sm_90 is well below
// that of wgmma.
#pragma once

#include <type_traits>

#include "../finish.h"
#include "attention_cuda.h"
#include "device.h"
#include "fp8.h"
#include "ptx.h"

namespace khub::cuda {

namespace {

constexpr int kRows = 16;
constexpr int kStrips = 4;  // of a prefill block, one for each warp
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Spans are 512 keys, and twice as long after every 16: the partial sums of 128k keys are 64, not 256.
constexpr int kSpan = 512, kSpansOfLength = 16;

__host__ __device__ __forceinline__ int span_start(int span) {
  const int doubled = span / kSpansOfLength;
  return kSpan * kSpansOfLength * ((1 << doubled) - 1) + (span % kSpansOfLength) * (kSpan << doubled);
}

// The span that holds `key`.
__host__ __device__ __forceinline__ int span_of(int key) {
  int doubled = 0;
  while (key >= span_start((doubled + 1) * kSpansOfLength)) ++doubled;
  return doubled * kSpansOfLength + (key - span_start(doubled * kSpansOfLength)) / (kSpan << doubled);
}

__host__ __device__ __forceinline__ int spans_of(int length) { return length > 0 ? span_of(length - 1) + 1 : 0; }

// Where keys and values wait to be multiplied.
template <class T, int kHead>
struct Tile {
  static constexpr int kKeys = kHead <= 128 ? 32 : 16;
  static constexpr int kPieces = kHead / 8;  // of 16 bytes

  // Rows are whole multiples of 128 bytes, all banks: pieces are swapped so that eight rows of one piece are in all.
  static __device__ __forceinline__ int at(int key, int piece) { return key * kHead + ((piece ^ (key & 7)) * 8); }

  T keys[kKeys * kHead];
  T values[kKeys * kHead];
  uint32_t found[kStrips];  // a bit for each key, of those that each warp asked for
};

// Where an FP8 cache's do before they are widened: what is on its way has the cache's size.
template <int kHead>
struct Narrow {
  static constexpr int kKeys = Tile<__half, kHead>::kKeys;
  static constexpr int kPieces = kHead / 16;

  static __device__ __forceinline__ int at(int key, int piece) { return key * kHead + piece * 16; }

  uint8_t keys[kKeys * kHead];
  uint8_t values[kKeys * kHead];
  uint32_t found[kStrips];
};

// What a sequence asks of a KV head: `count` rows, `group` to a token.
struct Rows {
  int64_t seq, kv_head, group, query_start, query_end, count;
  int64_t length;
};

// What Visible says of a row, in the registers of a thread that has few.
struct Row {
  int token;
  int head;  // -1: a row of padding, which sees nothing
  int first_key, end_key, tail, position;
  const int32_t* bits;
  float slope;
};

__device__ __forceinline__ Rows rows_of(const Attention& a, int64_t seq, int64_t kv_head) {
  Rows rows;
  rows.seq = seq;
  rows.kv_head = kv_head;
  rows.group = a.num_heads / a.num_kv_heads;
  rows.query_start = a.query_start_loc ? a.query_start_loc[seq] : seq;
  rows.query_end = a.query_start_loc ? a.query_start_loc[seq + 1] : seq + 1;
  rows.count = (rows.query_end - rows.query_start) * rows.group;
  rows.length = min(int64_t(a.seq_lens[seq]), a.max_blocks * a.block_size);
  return rows;
}

__device__ __forceinline__ Row make_row(const Attention& a, const Rows& rows, int64_t index) {
  Row row = {};
  row.token = int(rows.query_start + index / rows.group);
  row.head = -1;
  if (index >= rows.count) return row;
  row.head = int(rows.kv_head * rows.group + index % rows.group);
  row.slope = a.alibi_slopes ? a.alibi_slopes[row.head] : 0.0f;
  const Visible visible = visible_keys(a, row.token, rows.query_end, rows.length);
  row.first_key = int(visible.first_key);
  row.end_key = int(visible.end_key);
  row.tail = visible.bits ? int(visible.tail) : 0x7fffffff;
  row.position = int(visible.position);
  row.bits = visible.bits;
  return row;
}

// The keys that a warp's rows see lie in [first, end).
__device__ __forceinline__ void seen_by_warp(const Row (&rows)[2], int* first, int* end) {
  *first = 0x7fffffff;
  *end = 0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (rows[r].end_key <= rows[r].first_key) continue;
    *first = min(*first, rows[r].first_key);
    *end = max(*end, rows[r].end_key);
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    *first = min(*first, __shfl_xor_sync(kAllLanes, *first, offset));
    *end = max(*end, __shfl_xor_sync(kAllLanes, *end, offset));
  }
}

// Asks for the keys and values of `first` and later in the sequence, zeros for those outside [begin, end), which are
// not read; of kWarps warps each asks for its part.
template <int kWarps, class S>
__device__ __forceinline__ void ask(const Attention& a, const Rows& rows, int first, int begin, int end, int warp,
                                    int lane, S* tile) {
  using Stored = std::remove_reference_t<decltype(tile->keys[0])>;
  constexpr int kEach = S::kKeys / kWarps, kPiece = 16 / int(sizeof(Stored));
  constexpr int kAtOnce = kWarp / S::kPieces;  // keys that a turn of the lanes covers
  static_assert(S::kPieces <= kWarp && kEach % kAtOnce == 0, "lanes divide the keys evenly");
  // A lane finds where one key is and tells the others.
  const int mine = first + warp * kEach + lane % kEach;
  int64_t key_offset = 0, value_offset = 0;
  int found = 0;
  if (mine >= begin && mine < end) {
    const unsigned block_size = unsigned(a.block_size);
    const int64_t block = a.block_tables[rows.seq * a.block_table_stride + unsigned(mine) / block_size];
    const int64_t slot = unsigned(mine) % block_size;
    // A block id out of range cannot be reported from here; it must at least not be followed.
    if (block >= 0 && block < a.num_blocks) {
      found = 1;
      key_offset = block * a.key.block_stride + slot * a.key.slot_stride + rows.kv_head * a.key.head_stride;
      value_offset =
          block * a.value.block_stride + slot * a.value.slot_stride + rows.kv_head * a.value.head_stride;
    }
  }
  const uint32_t all = __ballot_sync(kAllLanes, found) & uint32_t((uint64_t(1) << kEach) - 1);
  if (lane == 0) tile->found[warp] = all << (warp * kEach);
  const int piece = lane % S::kPieces;
  const bool inside = piece * kPiece < int(a.head_size);
#pragma unroll
  for (int i = 0; i < kEach; i += kAtOnce) {
    const int from = i + lane / S::kPieces, key = warp * kEach + from;
    const int64_t key_at = __shfl_sync(kAllLanes, key_offset, from) + piece * kPiece;
    const int64_t value_at = __shfl_sync(kAllLanes, value_offset, from) + piece * kPiece;
    const bool valid = __shfl_sync(kAllLanes, found, from) && inside;
    const Stored *keys = static_cast<const Stored*>(a.key.data), *values = static_cast<const Stored*>(a.value.data);
    copy_async(tile->keys + S::at(key, piece), keys + (valid ? key_at : 0), valid);
    copy_async(tile->values + S::at(key, piece), values + (valid ? value_at : 0), valid);
  }
}

__device__ __forceinline__ uint32_t pack(float low, float high, __half*) {
  __half both[2];
  from_float(low, &both[0]);
  from_float(high, &both[1]);
  uint32_t word;
  memcpy(&word, both, sizeof(word));
  return word;
}

__device__ __forceinline__ uint32_t pack(float low, float high, __nv_bfloat16*) {
  __nv_bfloat16 both[2];
  from_float(low, &both[0]);
  from_float(high, &both[1]);
  uint32_t word;
  memcpy(&word, both, sizeof(word));
  return word;
}

// Two FP8 numbers, both of which every half precision holds.
template <class T>
__device__ __forceinline__ uint32_t widen(uint16_t two, __nv_fp8_interpretation_t type) {
  const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(two, type);
  if constexpr (std::is_same_v<T, __half>) return uint32_t(halves.y) << 16 | halves.x;
  __half low, high;
  memcpy(&low, &halves.x, sizeof(low));
  memcpy(&high, &halves.y, sizeof(high));
  return pack(to_float(low), to_float(high), static_cast<T*>(nullptr));
}

template <int kThreads, class T, int kHead>
__device__ __forceinline__ void widen(const Narrow<kHead>& from, CacheType type, int thread, Tile<T, kHead>* to) {
  using S = Tile<T, kHead>;
  constexpr int kPieces = kHead / 16;
  const __nv_fp8_interpretation_t kind = type == CacheType::e4m3 ? __NV_E4M3 : __NV_E5M2;
  if (thread < kStrips) to->found[thread] = from.found[thread];
#pragma unroll
  for (int i = thread; i < 2 * S::kKeys * kPieces; i += kThreads) {
    const int key = i / kPieces % S::kKeys, piece = i % kPieces;
    const bool is_value = i >= S::kKeys * kPieces;
    const uint8_t* narrow = (is_value ? from.values : from.keys) + Narrow<kHead>::at(key, piece);
    T* wide = is_value ? to->values : to->keys;
    const uint4 sixteen = *reinterpret_cast<const uint4*>(narrow);
    const uint32_t words[4] = {sixteen.x, sixteen.y, sixteen.z, sixteen.w};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 out;
      out.x = widen<T>(uint16_t(words[2 * half]), kind);
      out.y = widen<T>(uint16_t(words[2 * half] >> 16), kind);
      out.z = widen<T>(uint16_t(words[2 * half + 1]), kind);
      out.w = widen<T>(uint16_t(words[2 * half + 1] >> 16), kind);
      *reinterpret_cast<uint4*>(wide + S::at(key, 2 * piece + half)) = out;
    }
  }
}

// Two tiles of keys and values, one to be multiplied while the other is on its way, for kWarps warps.
template <class T, int kHead, bool kFp8, int kWarps>
struct Stages {
  using S = Tile<T, kHead>;
  S tiles[2];

  __device__ __forceinline__ void asked(const Attention& a, const Rows& rows, int first, int begin, int end, int warp,
                                        int lane, int stage) {
    ask<kWarps>(a, rows, first, begin, end, warp, lane, &tiles[stage]);
  }

  // After a wait and a barrier.
  __device__ __forceinline__ const S& ready(const Attention&, int, int stage) { return tiles[stage]; }
};

template <class T, int kHead, int kWarps>
struct Stages<T, kHead, true, kWarps> {
  using S = Tile<T, kHead>;
  Narrow<kHead> narrow[2];
  S tile;

  __device__ __forceinline__ void asked(const Attention& a, const Rows& rows, int first, int begin, int end, int warp,
                                        int lane, int stage) {
    ask<kWarps>(a, rows, first, begin, end, warp, lane, &narrow[stage]);
  }

  __device__ __forceinline__ const S& ready(const Attention& a, int thread, int stage) {
    widen<kWarps * kWarp>(narrow[stage], a.cache_type, thread, &tile);
    if constexpr (kWarps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
    return tile;
  }
};

// Options that few models use: kept out of the loop, which is unrolled. By value: who gives away an address keeps all of
// a struct in memory.
__device__ __noinline__ float shaped(Row row, float x, int key, float softcap) {
  if (softcap > 0.0f) x = __fmul_rn(softcap, tanhf(x / softcap));
  if (row.slope == 0.0f) return x;
  const Visible visible = {row.position, row.first_key, row.end_key, row.tail, row.bits};
  return fmaf(row.slope, float(place_of(visible, key) - row.position), x);
}

__device__ __noinline__ bool seen_at(Row row, int key) {
  const Visible visible = {row.position, row.first_key, row.end_key, row.tail, row.bits};
  return key >= row.first_key && key < row.end_key && sees(visible, key);
}

// What a lane holds of 16 rows: rows g and g + 8, of each 8 elements of a head the columns 2 t and 2 t + 1.
template <class T, int kHead>
struct Strip {
  uint32_t query[kHead / 16][4];
  float output[kHead / 8][4];
  float maximum[2], total[2];  // of logits in base 2; a lane's total is that of its own columns until `close`
  float scale;
  Row rows[2];

  __device__ __forceinline__ void open(const Attention& a, const Rows& of, int first, int lane) {
    const int g = lane / 4, t = lane % 4;
    scale = a.scale * (a.k_scale ? *a.k_scale : 1.0f);
#pragma unroll
    for (int r = 0; r < 2; ++r) rows[r] = make_row(a, of, first + g + 8 * r);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const T* from = static_cast<const T*>(a.query);
      if (rows[r].head >= 0) from += rows[r].token * a.query_token_stride + rows[r].head * a.query_head_stride;
#pragma unroll
      for (int k = 0; k < kHead / 16; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          T both[2] = {};
          const int d = k * 16 + half * 8 + 2 * t;
          if (rows[r].head >= 0 && d < int(a.head_size)) {  // a multiple of 8
            both[0] = from[d];
            both[1] = from[d + 1];
          }
          memcpy(&query[k][r + 2 * half], both, sizeof(both));
        }
      }
    }
    clear();
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      maximum[r] = -INFINITY;
      total[r] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) output[n][i] = 0.0f;
    }
  }

  // The keys `first` and later, as many as a tile has, which kWarps asked for. One that no row sees changes nothing.
  template <int kWarps>
  __device__ __forceinline__ void add(const Attention& a, const Tile<T, kHead>& tile, int first, int lane) {
    using S = Tile<T, kHead>;
    const int t = lane % 4, matrix = lane / 8, line = lane % 8;
    float scores[S::kKeys / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k) {
#pragma unroll
      for (int pair = 0; pair < S::kKeys / 16; ++pair) {
        uint32_t b[4];
        load_matrices<false>(b, tile.keys + S::at(pair * 16 + matrix / 2 * 8 + line, 2 * k + matrix % 2));
        mma(scores[2 * pair], query[k], b[0], b[1], static_cast<T*>(nullptr));
        mma(scores[2 * pair + 1], query[k], b[2], b[3], static_cast<T*>(nullptr));
      }
    }
    uint32_t found = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) found |= tile.found[warp];
    const bool is_shaped = a.softcap > 0.0f || a.alibi_slopes;
    float peak[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool all_seen = first >= rows[r].first_key && first + S::kKeys <= min(rows[r].end_key, rows[r].tail) &&
                            found == uint32_t((uint64_t(1) << S::kKeys) - 1);
#pragma unroll
      for (int n = 0; n < S::kKeys / 8; ++n) {
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          const int place = n * 8 + 2 * t + i % 2, key = first + place;
          const bool seen = all_seen || ((found >> place & 1u) && seen_at(rows[r], key));
          // In base 2. Products are fused with nothing: whatever kernel this is compiled into, it must round alike.
          float x = __fmul_rn(scores[n][i], scale);
          if (is_shaped) x = shaped(rows[r], x, key, a.softcap);
          scores[n][i] = seen ? __fmul_rn(x, kLog2E) : -INFINITY;
          peak[r] = fmaxf(peak[r], scores[n][i]);
        }
      }
    }
    float correction[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      peak[r] = fmaxf(peak[r], __shfl_xor_sync(kAllLanes, peak[r], 1));
      peak[r] = fmaxf(peak[r], __shfl_xor_sync(kAllLanes, peak[r], 2));
      correction[r] = peak[r] == maximum[r] ? 1.0f : exp2f(maximum[r] - peak[r]);
      maximum[r] = peak[r];
      total[r] = __fmul_rn(total[r], correction[r]);
    }
    // Mostly no maximum moves, and a product with 1 changes nothing.
    if (__any_sync(kAllLanes, correction[0] != 1.0f || correction[1] != 1.0f)) {
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) output[n][i] *= correction[i / 2];
      }
    }
#pragma unroll
    for (int n = 0; n < S::kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float zero = maximum[i / 2] == -INFINITY ? 0.0f : maximum[i / 2];  // of a row that sees nothing yet
        scores[n][i] = exp2f(scores[n][i] - zero);
        total[i / 2] += scores[n][i];
      }
    }
#pragma unroll
    for (int k = 0; k < S::kKeys / 16; ++k) {
      uint32_t weights[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float(&s)[4] = scores[2 * k + half];
        weights[2 * half] = pack(s[0], s[1], static_cast<T*>(nullptr));
        weights[2 * half + 1] = pack(s[2], s[3], static_cast<T*>(nullptr));
      }
#pragma unroll
      for (int pair = 0; pair < kHead / 16; ++pair) {
        uint32_t b[4];
        load_matrices<true>(b, tile.values + S::at(k * 16 + matrix % 2 * 8 + line, 2 * pair + matrix / 2));
        mma(output[2 * pair], weights, b[0], b[1], static_cast<T*>(nullptr));
        mma(output[2 * pair + 1], weights, b[2], b[3], static_cast<T*>(nullptr));
      }
    }
  }

  // Every lane of a row gets the row's total.
  __device__ __forceinline__ void close() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      total[r] += __shfl_xor_sync(kAllLanes, total[r], 1);
      total[r] += __shfl_xor_sync(kAllLanes, total[r], 2);
    }
  }
};

// How a row's sums over two spans come together: both are multiplied and added.
struct Join {
  float maximum, before, added;
};

__device__ __forceinline__ Join join_of(float maximum, float total, float next_maximum) {
  Join m;
  m.maximum = fmaxf(maximum, next_maximum);
  m.before = total == 0.0f ? 0.0f : exp2f(maximum - m.maximum);
  m.added = exp2f(next_maximum - m.maximum);
  return m;
}

__device__ __forceinline__ float joined(const Join& m, float value, float next) {
  return fmaf(next, m.added, __fmul_rn(value, m.before));
}

template <class T, int kHead>
__device__ __forceinline__ void write_out(const Attention& a, const Row (&rows)[2],
                                          const float (&output)[kHead / 8][4], const float (&maximum)[2],
                                          const float (&total)[2], int lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (rows[r].head < 0) continue;
    const Finish f = finish(a, rows[r].head, maximum[r] * kLn2, total[r]);
    T* to = static_cast<T*>(a.out) + rows[r].token * a.out_token_stride + rows[r].head * a.out_head_stride;
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      const int d = n * 8 + lane % 4 * 2;
      if (d >= int(a.head_size)) continue;
      from_float(__fmul_rn(output[n][2 * r], f.factor), to + d);
      from_float(__fmul_rn(output[n][2 * r + 1], f.factor), to + d + 1);
    }
    if (a.lse && lane % 4 == 0) a.lse[rows[r].token * a.num_heads + rows[r].head] = f.lse;
  }
}

// Who works on what, and where the sums of spans are kept: [seq, kv_head, row, span] of a head and its maximum and total.
struct Split {
  float* partials;
  int64_t rows;  // a sequence of so many rows or fewer has a warp for each span
  int64_t spans;
};

template <int kHead>
__device__ __forceinline__ float* partial_of(const Attention& a, const Split& split, const Rows& of, int64_t row,
                                             int span) {
  return split.partials +
         (((of.seq * a.num_kv_heads + of.kv_head) * split.rows + row) * split.spans + span) * (kHead + 2);
}

// One warp: 16 rows of one KV head of a sequence over every gridDim.z-th of its spans.
template <class T, int kHead, bool kFp8>
__global__ void __launch_bounds__(kWarp) decode_kernel(const Attention a, const Split split) {
  using S = Tile<T, kHead>;
  alignas(128) __shared__ Stages<T, kHead, kFp8, 1> stages;
  const int lane = threadIdx.x;
  const int64_t strips = (split.rows + kRows - 1) / kRows;
  const Rows of = rows_of(a, blockIdx.x / strips, blockIdx.y);
  const int64_t first_row = blockIdx.x % strips * kRows;
  const int spans = spans_of(int(of.length));
  if (of.count > split.rows || first_row >= of.count || int(blockIdx.z) >= max(spans, 1)) return;

  Strip<T, kHead> strip;
  strip.open(a, of, first_row, lane);
  int first, end;
  seen_by_warp(strip.rows, &first, &end);
  for (int span = blockIdx.z; span < max(spans, 1); span += gridDim.z) {
    const int start = max(span_start(span), first / S::kKeys * S::kKeys), until = min(span_start(span + 1), end);
    strip.clear();
    if (start < until) stages.asked(a, of, start, first, until, 0, lane, 0);
    commit_copies();
    int stage = 0;
    for (int key = start; key < until; key += S::kKeys, stage ^= 1) {
      if (key + S::kKeys < until) stages.asked(a, of, key + S::kKeys, first, until, 0, lane, stage ^ 1);
      commit_copies();
      wait_copies<1>();
      __syncwarp();
      strip.template add<1>(a, stages.ready(a, lane, stage), key, lane);
      __syncwarp();  // who is done may ask for the keys that come where these are
    }
    strip.close();
    if (spans <= 1) {
      write_out<T, kHead>(a, strip.rows, strip.output, strip.maximum, strip.total, lane);
      return;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (strip.rows[r].head < 0) continue;
      float* to = partial_of<kHead>(a, split, of, first_row + lane / 4 + 8 * r, span);
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) {
        to[n * 8 + lane % 4 * 2] = strip.output[n][2 * r];
        to[n * 8 + lane % 4 * 2 + 1] = strip.output[n][2 * r + 1];
      }
      if (lane % 4 == 0) {
        to[kHead] = strip.maximum[r];
        to[kHead + 1] = strip.total[r];
      }
    }
  }
}

// A block is one row, a thread one element of its head: what decode_kernel left, in the order of the spans.
template <class T, int kHead>
__global__ void __launch_bounds__(kHead) merge_kernel(const Attention a, const Split split) {
  const Rows of = rows_of(a, blockIdx.x / split.rows, blockIdx.y);
  const int64_t index = blockIdx.x % split.rows;
  const int spans = spans_of(int(of.length)), d = threadIdx.x;
  if (of.count > split.rows || index >= of.count || spans <= 1) return;
  float value = 0.0f, maximum = -INFINITY, total = 0.0f;
  for (int span = 0; span < spans; ++span) {
    const float* from = partial_of<kHead>(a, split, of, index, span);
    if (from[kHead + 1] == 0.0f) continue;
    const Join m = join_of(maximum, total, from[kHead]);
    value = joined(m, value, from[d]);
    total = joined(m, total, from[kHead + 1]);
    maximum = m.maximum;
  }
  const int64_t token = of.query_start + index / of.group, head = of.kv_head * of.group + index % of.group;
  const Finish f = finish(a, head, maximum * kLn2, total);
  if (d < int(a.head_size)) {
    from_float(__fmul_rn(value, f.factor),
               static_cast<T*>(a.out) + token * a.out_token_stride + head * a.out_head_stride + d);
  }
  if (a.lse && d == 0) a.lse[token * a.num_heads + head] = f.lse;
}

// The tiles of sequence i begin at this number of them, which leaves room for the last one's rows.
__device__ __forceinline__ int64_t first_tile(const Attention& a, int64_t seq) {
  return a.query_start_loc[seq] * (a.num_heads / a.num_kv_heads) / (kStrips * kRows) + seq;
}

__device__ __forceinline__ int64_t sequence_of_tile(const Attention& a, int64_t tile) {
  int64_t low = 0, high = a.num_seqs;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (first_tile(a, middle) <= tile) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Four warps: 64 rows of one KV head of a sequence over all keys that they see, each of which they load once.
template <class T, int kHead, bool kFp8>
__global__ void __launch_bounds__(kStrips* kWarp) prefill_kernel(const Attention a, const Split split) {
  using S = Tile<T, kHead>;
  alignas(128) __shared__ Stages<T, kHead, kFp8, kStrips> stages;
  __shared__ int firsts[kStrips], ends[kStrips];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t index = gridDim.x - 1 - blockIdx.x;  // the last rows see most keys, and start first
  const int64_t seq = sequence_of_tile(a, index);
  const Rows of = rows_of(a, seq, blockIdx.y);
  const int64_t first_row = (index - first_tile(a, seq)) * kStrips * kRows;
  if (of.count <= split.rows || first_row >= of.count) return;

  Strip<T, kHead> strip;
  strip.open(a, of, first_row + warp * kRows, lane);
  int own_first, own_end;
  seen_by_warp(strip.rows, &own_first, &own_end);
  if (lane == 0) {
    firsts[warp] = own_first;
    ends[warp] = own_end;
  }
  __syncthreads();
  int first = firsts[0], end = ends[0];
#pragma unroll
  for (int w = 1; w < kStrips; ++w) {
    first = min(first, firsts[w]);
    end = max(end, ends[w]);
  }

  float output[kHead / 8][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, total[2] = {};
  const int start = first / S::kKeys * S::kKeys;
  if (first < end) stages.asked(a, of, start, first, end, warp, lane, 0);
  commit_copies();
  int stage = 0;
  for (int key = start, next_span = first < end ? span_start(span_of(first) + 1) : 0; key < end;
       key += S::kKeys, stage ^= 1) {
    if (key + S::kKeys < end) stages.asked(a, of, key + S::kKeys, first, end, warp, lane, stage ^ 1);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    const S& tile = stages.ready(a, threadIdx.x, stage);
    if (key + S::kKeys > own_first && key < own_end) strip.template add<kStrips>(a, tile, key, lane);
    if (key + S::kKeys >= min(next_span, end)) {
      strip.close();
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (strip.total[r] == 0.0f) continue;
        const Join m = join_of(maximum[r], total[r], strip.maximum[r]);
#pragma unroll
        for (int n = 0; n < kHead / 8; ++n) {
          output[n][2 * r] = joined(m, output[n][2 * r], strip.output[n][2 * r]);
          output[n][2 * r + 1] = joined(m, output[n][2 * r + 1], strip.output[n][2 * r + 1]);
        }
        total[r] = joined(m, total[r], strip.total[r]);
        maximum[r] = m.maximum;
      }
      strip.clear();
      next_span = span_start(span_of(key + S::kKeys) + 1);
    }
    __syncthreads();
  }
  write_out<T, kHead>(a, strip.rows, output, maximum, total, lane);
}

constexpr int64_t kMostKeys = int64_t(1) << 26;
constexpr int64_t kMostBytes = int64_t(512) << 20;  // of partial sums; beyond, sequences are not split
constexpr int64_t kEnoughBlocks = 16384;            // several times what is resident on the largest device

int64_t width_of(const Attention& a) { return a.head_size <= 64 ? 64 : a.head_size <= 128 ? 128 : 256; }

Split split_of(const Attention& a) {
  const int64_t group = a.num_heads / a.num_kv_heads;
  Split split = {};
  split.spans = spans_of(int(a.max_blocks * a.block_size));
  // Steps of single tokens, of drafts, and of prefills beside single tokens.
  split.rows = a.num_tokens <= a.num_seqs ? group : a.num_tokens <= 8 * a.num_seqs ? 64 : 16;
  if (split.rows < group) split.rows = group;
  if (split.spans > 1 && a.num_seqs * a.num_kv_heads * split.rows * split.spans * (width_of(a) + 2) * 4 > kMostBytes) {
    split.rows = 0;
  }
  return split;
}

template <class T, int kHead, bool kFp8>
const char* attend_with(const Attention& a, const Split& split, void* stream) {
  const char* error = nullptr;
  const unsigned kv_heads = unsigned(a.num_kv_heads);
  if (split.rows > 0) {
    const int64_t strips = a.num_seqs * ((split.rows + kRows - 1) / kRows);
    const int64_t enough = (kEnoughBlocks + strips * kv_heads - 1) / (strips * kv_heads);
    const dim3 grid(unsigned(strips), kv_heads, unsigned(max(int64_t(1), min(split.spans, enough))));
    error = launch(decode_kernel<T, kHead, kFp8>, grid, dim3(kWarp), stream, a, split);
    if (!error && split.spans > 1) {
      error = launch(merge_kernel<T, kHead>, dim3(unsigned(a.num_seqs * split.rows), kv_heads), dim3(kHead), stream,
                     a, split);
    }
  }
  // Who has how many tokens is known on the device alone; without query_start_loc everybody has one.
  const int64_t group = a.num_heads / a.num_kv_heads;
  if (!error && a.query_start_loc && a.num_tokens * group > split.rows) {
    const dim3 grid(unsigned(a.num_tokens * group / (kStrips * kRows) + a.num_seqs), kv_heads);
    error = launch(prefill_kernel<T, kHead, kFp8>, grid, dim3(kStrips * kWarp), stream, a, split);
  }
  return error;
}

template <class T, bool kFp8>
const char* attend_typed(const Attention& a, const Split& split, void* stream) {
  switch (width_of(a)) {
    case 64: return attend_with<T, 64, kFp8>(a, split, stream);
    case 128: return attend_with<T, 128, kFp8>(a, split, stream);
    default: return attend_with<T, 256, kFp8>(a, split, stream);
  }
}

template <bool kFp8>
const char* attend_half(const Attention& a, float* partials, void* stream) {
  Split split = split_of(a);
  split.partials = partials;
  return a.dtype == DType::f16 ? attend_typed<__half, kFp8>(a, split, stream)
                               : attend_typed<__nv_bfloat16, kFp8>(a, split, stream);
}

}  // namespace

}  // namespace khub::cuda
