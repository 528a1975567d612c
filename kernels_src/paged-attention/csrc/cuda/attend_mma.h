// Attention on tensor cores, for caches whose heads are rows of 16-byte pieces, of the query's half precision or FP8.
// Included by a file for either, which are compiled side by side.
//
// Rows, strips and spans are those of attend_rows.h. Keys and values wait in shared memory, kKeys of them at a time, the
// next ones on their way while these are multiplied. Sequences of few rows have a warp for each span (decode_kernel,
// whose partial sums merge_kernel brings together: Flash-Decoding), long ones a block of four strips that walk the
// spans in turn (prefill_kernel).
//
// Roofline: decode reads every key and value byte once, plus 2 * 16 * (head + 2) * 4 bytes of partial sums for each
// span and KV head, 6 % at 512 keys of 128 in bfloat16 with all 16 rows in use; bound by memory. Prefill does
// 4 * rows * keys * head operations, half of them where causal; bound by mma.sync's rate, which on sm_90 is well below
// that of wgmma: there attend_wgmma.cu takes what it can.
#pragma once

#include <type_traits>

#include "attend_rows.h"
#include "fp8.h"
#include "ptx.h"

namespace khub::cuda {

namespace {

constexpr int kStrips = 4;  // of a prefill block, one for each warp

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

// The keys `first` and later, as many as a tile has, which kWarps asked for. One that no row sees changes nothing.
template <int kWarps, class T, int kHead>
__device__ __forceinline__ void add(const Attention& a, const Tile<T, kHead>& tile, int first, int lane,
                                    Strip<T, kHead>* strip) {
  using S = Tile<T, kHead>;
  const int matrix = lane / 8, line = lane % 8;
  float scores[S::kKeys / 8][4] = {};
#pragma unroll
  for (int k = 0; k < kHead / 16; ++k) {
#pragma unroll
    for (int pair = 0; pair < S::kKeys / 16; ++pair) {
      uint32_t b[4];
      load_matrices<false>(b, tile.keys + S::at(pair * 16 + matrix / 2 * 8 + line, 2 * k + matrix % 2));
      mma(scores[2 * pair], strip->query[k], b[0], b[1], static_cast<T*>(nullptr));
      mma(scores[2 * pair + 1], strip->query[k], b[2], b[3], static_cast<T*>(nullptr));
    }
  }
  uint32_t found = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) found |= tile.found[warp];
  strip->template weigh<S::kKeys>(a, scores, first, found, lane);
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
      mma(strip->output[2 * pair], weights, b[0], b[1], static_cast<T*>(nullptr));
      mma(strip->output[2 * pair + 1], weights, b[2], b[3], static_cast<T*>(nullptr));
    }
  }
}

// One warp: 16 rows of one KV head of a sequence over every gridDim.z-th of its spans.
template <class T, int kHead, bool kFp8>
__global__ void __launch_bounds__(kWarp) decode_kernel(const Attention a, const Split split) {
  using S = Tile<T, kHead>;
  alignas(128) __shared__ Stages<T, kHead, kFp8, 1> stages;
  __shared__ Row strip_rows[kRows];
  const int lane = threadIdx.x;
  const int64_t strips = (split.rows + kRows - 1) / kRows;
  const Rows of = rows_of(a, blockIdx.x / strips, blockIdx.y);
  const int64_t first_row = blockIdx.x % strips * kRows;
  const int spans = spans_of(int(of.length));
  if (of.count > split.rows || first_row >= of.count || int(blockIdx.z) >= max(spans, 1)) return;

  Strip<T, kHead> strip;
  strip.open(a, of, first_row, lane, strip_rows);
  int first, end;
  seen_by_strip(strip, &first, &end);
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
      add<1>(a, stages.ready(a, lane, stage), key, lane, &strip);
      __syncwarp();  // who is done may ask for the keys that come where these are
    }
    strip.close();
    if (spans <= 1) {
      write_out<T, kHead>(a, strip.rows, strip, lane);
      return;
    }
    write_partial(a, split, of, strip, first_row, span, lane);
  }
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
  __shared__ Row strip_rows[kStrips][kRows];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t index = gridDim.x - 1 - blockIdx.x;  // the last rows see most keys, and start first
  const int64_t seq = sequence_of_tile(a, index);
  const Rows of = rows_of(a, seq, blockIdx.y);
  const int64_t first_row = (index - first_tile(a, seq)) * kStrips * kRows;
  if (of.count <= split.rows || first_row >= of.count) return;

  Strip<T, kHead> strip;
  strip.open(a, of, first_row + warp * kRows, lane, strip_rows[warp]);
  int own_first, own_end;
  seen_by_strip(strip, &own_first, &own_end);
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

  Joined<T, kHead> joined;
  joined.clear();
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
    if (key + S::kKeys > own_first && key < own_end) add<kStrips>(a, tile, key, lane, &strip);
    if (key + S::kKeys >= min(next_span, end)) {
      strip.close();
      joined.add(strip);
      strip.clear();
      next_span = span_start(span_of(key + S::kKeys) + 1);
    }
    __syncthreads();
  }
  write_out<T, kHead>(a, strip.rows, joined, lane);
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
