// Rows of attention on tensor cores: who they are, how they weigh keys, and how their sums over spans of keys come
// together. What kernels share, whichever instructions multiply for them.
//
// Rows are pairs of a query token and one of the query heads that share a KV head, so GQA fills the 16 rows of a
// tensor-core tile and each key and value is loaded once for all of them. A strip is 16 rows held by one warp, queries and
// sums in registers. Softmax runs along the keys (FlashAttention-2, Dao 2023).
//
// A sequence's keys are cut into spans at fixed positions: each is summed on its own, and the sums are merged in the
// order of the spans. Who does the work decides nothing: a token's result has the same bits alone, in any batch and in
// any chunk.
#pragma once

#include "../finish.h"
#include "attention_cuda.h"
#include "device.h"

namespace khub::cuda {

namespace {

constexpr int kRows = 16;  // of a strip
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

// What a sequence asks of a KV head: `count` rows, `group` to a token.
struct Rows {
  int64_t seq, kv_head, group, query_start, query_end, count;
  int64_t length;
};

// Who a row is, and what Visible says of it. In shared memory: registers are few.
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

// Options that few models use: kept out of the loop, which is unrolled.
__device__ __noinline__ float shaped(const Row& row, float x, int key, float softcap) {
  if (softcap > 0.0f) x = __fmul_rn(softcap, tanhf(x / softcap));
  if (row.slope == 0.0f) return x;
  const Visible visible = {row.position, row.first_key, row.end_key, row.tail, row.bits};
  return fmaf(row.slope, float(place_of(visible, key) - row.position), x);
}

__device__ __noinline__ bool seen_in_tree(const Row& row, int key) {
  const Visible visible = {row.position, row.first_key, row.end_key, row.tail, row.bits};
  return sees(visible, key);
}

// 2^x, and 0 where that is no normal number.
__device__ __forceinline__ float power_of_two(float x) {
#if defined(__CUDACC__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(power) : "f"(x));
  return power;
#else
  return exp2f(x);
#endif
}

// What a lane holds of 16 rows: rows g and g + 8, of each 8 elements of a head the columns 2 t and 2 t + 1.
template <class T, int kHead>
struct Strip {
  uint32_t query[kHead / 16][4];
  float output[kHead / 8][4];
  float maximum[2], total[2];  // of logits in base 2; a lane's total is that of its own columns until `close`
  float scale;
  const Row* rows;  // this lane's: the first and the ninth
  int first_key[2], end_key[2], tail[2];

  // Row 0 is the sequence's `first`; `shared` has room for all 16.
  __device__ __forceinline__ void open(const Attention& a, const Rows& of, int first, int lane, Row* shared) {
    const int g = lane / 4, t = lane % 4;
    scale = a.scale * (a.k_scale ? *a.k_scale : 1.0f);
    __syncwarp();  // who still reads the rows of before
    if (lane < kRows) shared[lane] = make_row(a, of, first + lane);
    __syncwarp();
    rows = shared + g;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Row& row = rows[8 * r];
      first_key[r] = row.first_key;
      end_key[r] = row.end_key;
      tail[r] = row.tail;
      const T* from = static_cast<const T*>(a.query);
      if (row.head >= 0) from += row.token * a.query_token_stride + row.head * a.query_head_stride;
#pragma unroll
      for (int k = 0; k < kHead / 16; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          T both[2] = {};
          const int d = k * 16 + half * 8 + 2 * t;
          if (row.head >= 0 && d < int(a.head_size)) {  // a multiple of 8
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

  // Products with the keys `first` and later become their weights, and what was summed before is brought to the same
  // maximum. A bit of `found` is a key that is there. Keys that no row sees change nothing.
  template <int kKeys>
  __device__ __forceinline__ void weigh(const Attention& a, float (&scores)[kKeys / 8][4], int first, uint64_t found,
                                        int lane) {
    const int t = lane % 4;
    const bool all_found = found == ~uint64_t(0) >> (64 - kKeys);
    const bool is_shaped = a.softcap > 0.0f || a.alibi_slopes;
    const float factor = is_shaped ? scale : scale * kLog2E;  // logits in base 2
    float peak[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool none_seen = end_key[r] <= first || first_key[r] >= first + kKeys;
      const bool all_seen = all_found && first >= first_key[r] && first + kKeys <= min(end_key[r], tail[r]);
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          const int place = n * 8 + 2 * t + i % 2, key = first + place;
          bool seen = all_seen;
          if (!seen && !none_seen) {
            seen = (found >> place & 1u) && key >= first_key[r] && key < end_key[r] &&
                   (key < tail[r] || seen_in_tree(rows[8 * r], key));
          }
          // Products are fused with nothing: whatever kernel this is compiled into, it must round alike.
          float x = __fmul_rn(scores[n][i], factor);
          if (is_shaped) x = __fmul_rn(shaped(rows[8 * r], x, key, a.softcap), kLog2E);
          scores[n][i] = seen ? x : -INFINITY;
          peak[r] = fmaxf(peak[r], scores[n][i]);
        }
      }
    }
    float correction[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      peak[r] = fmaxf(peak[r], __shfl_xor_sync(kAllLanes, peak[r], 1));
      peak[r] = fmaxf(peak[r], __shfl_xor_sync(kAllLanes, peak[r], 2));
      correction[r] = peak[r] == maximum[r] ? 1.0f : power_of_two(maximum[r] - peak[r]);
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
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float zero = maximum[i / 2] == -INFINITY ? 0.0f : maximum[i / 2];  // of a row that sees nothing yet
        scores[n][i] = power_of_two(scores[n][i] - zero);
        total[i / 2] += scores[n][i];
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

// The keys that the rows of a warp's strip see lie in [first, end).
template <class T, int kHead>
__device__ __forceinline__ void seen_by_strip(const Strip<T, kHead>& strip, int* first, int* end) {
  *first = 0x7fffffff;
  *end = 0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (strip.end_key[r] <= strip.first_key[r]) continue;
    *first = min(*first, strip.first_key[r]);
    *end = max(*end, strip.end_key[r]);
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    *first = min(*first, __shfl_xor_sync(kAllLanes, *first, offset));
    *end = max(*end, __shfl_xor_sync(kAllLanes, *end, offset));
  }
}

// How a row's sums over two spans come together: both are multiplied and added.
struct Join {
  float maximum, before, added;
};

__device__ __forceinline__ Join join_of(float maximum, float total, float next_maximum) {
  Join m;
  m.maximum = fmaxf(maximum, next_maximum);
  m.before = total == 0.0f ? 0.0f : power_of_two(maximum - m.maximum);
  m.added = power_of_two(next_maximum - m.maximum);
  return m;
}

__device__ __forceinline__ float joined(const Join& m, float value, float next) {
  return fmaf(next, m.added, __fmul_rn(value, m.before));
}

// The sums of a strip's spans, in their order. Output: where they are, [kHead / 8][4] of each lane.
template <class T, int kHead, class Output = float[kHead / 8][4]>
struct Joined {
  Output output;
  float maximum[2], total[2];

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

  // Of a span that is closed.
  __device__ __forceinline__ void add(const Strip<T, kHead>& strip) {
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
  }
};

// `sums` are a strip's own, where it has one span, or the joined ones of its spans.
template <class T, int kHead, class Sums>
__device__ __forceinline__ void write_out(const Attention& a, const Row* rows, const Sums& sums, int lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const Row& row = rows[8 * r];
    if (row.head < 0) continue;
    const Finish f = finish(a, row.head, sums.maximum[r] * kLn2, sums.total[r]);
    T* to = static_cast<T*>(a.out) + row.token * a.out_token_stride + row.head * a.out_head_stride;
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      const int d = n * 8 + lane % 4 * 2;
      if (d >= int(a.head_size)) continue;
      from_float(__fmul_rn(sums.output[n][2 * r], f.factor), to + d);
      from_float(__fmul_rn(sums.output[n][2 * r + 1], f.factor), to + d + 1);
    }
    if (a.lse && lane % 4 == 0) a.lse[row.token * a.num_heads + row.head] = f.lse;
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

// What a strip, closed, has summed over one of several spans; row 0 of it is `first_row`.
template <class T, int kHead>
__device__ __forceinline__ void write_partial(const Attention& a, const Split& split, const Rows& of,
                                              const Strip<T, kHead>& strip, int64_t first_row, int span, int lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (strip.rows[8 * r].head < 0) continue;
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

// Floats.
inline int64_t attend_partials(const Attention& a) {
  const Split split = split_of(a);
  return split.spans > 1 ? a.num_seqs * a.num_kv_heads * split.rows * split.spans * (width_of(a) + 2) : 0;
}

}  // namespace

}  // namespace khub::cuda
