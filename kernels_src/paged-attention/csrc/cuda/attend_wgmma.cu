// Attention on compute capability 9.0, for caches of the query's half precision and heads of up to 128: wgmma multiplies,
// TMA brings pages.
//
// Rows, strips and spans are those of attend_rows.h; a warpgroup has four strips. One warp asks for tiles of 64 keys and
// values: a copy for each page and each 64 elements of a head, which lands on a barrier of its stage, several stages
// ahead. With a stage it says what is to be done with it. Warpgroups that have 64 rows each multiply from where the keys
// and values lie, queries and weights from registers, and hand the stage back. Tiles that are not whole (a sequence's
// last, a window's first, a page that does not exist) are copied 16 bytes at a time, with zeros for what is not there.
//
// Sequences of few rows are one task for each span and 64 rows (kSplit; partial sums, which merge_kernel brings together),
// the others one for 128 rows and all keys that they see. Blocks stay, and take the next task when they are done with
// one, longest spans and last rows first: plan_kernel counts the tasks of each sequence, so that lengths, which only the
// device knows, need not be alike. Decoding and long chunks multiply with the same instructions in the same order, so a
// token's result has the same bits in either.
//
// Roofline: decode reads every key and value byte once, and writes and reads (head + 2) * 4 bytes of partial sums for
// each row and span: 3 % more at 8 rows, spans of 512 keys of 128 in bfloat16; bound by memory. A tile of 64 keys takes
// wgmma 512 cycles however few of the 64 rows are in use, a quarter of what memory takes for it. Prefill does
// 4 * rows * keys * head operations, half of them where causal, at wgmma's rate but for the softmax between two products,
// which one warpgroup does while the other multiplies. Not measured.
#include "attend_rows.h"
#include "attend_wgmma.h"
#include "ptx.h"
#include "wgmma_half.h"

namespace khub::cuda {

namespace {

constexpr int kKeys = 64;       // of a tile
constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kChunk = 64;      // elements of a head that are a row of 128 bytes in shared memory
constexpr int kChunkBytes = kKeys * kSwizzled;
constexpr int kPlanThreads = 128;

constexpr int kAllGroups = 2;                              // of a block, that multiply
constexpr int kThreads = (kAllGroups + 1) * kWarpgroup;  // the last warpgroup copies

// A ring of stages has a warp that fills it and warpgroups that it is filled for: one, or both of a block.
template <int kHead, bool kSplit>
struct Shape {
  static constexpr int kRings = kSplit ? kAllGroups : 1;
  static constexpr int kGroups = kAllGroups / kRings;
  static constexpr int kRows = kGroups * kGroupRows;
  static constexpr int kWarps = kGroups * kWarpgroup / kWarp;  // that multiply
  static constexpr int kChunks = kHead / kChunk;
  static constexpr int kStageBytes = 2 * kChunks * kChunkBytes;  // keys, then values
  static constexpr int kJoinedBytes = kSplit ? 0 : kRows * kHead * int(sizeof(float));
  static constexpr int kStages = ((192 << 10) - kJoinedBytes) / kRings / kStageBytes;
  static constexpr int kShared = kRings * kStages * kStageBytes + kJoinedBytes + kTileAlign;
};

// The tasks of one kind: a sequence's KV heads all have the same.
struct Tasks {
  unsigned* next;   // that nobody has taken
  int32_t* starts;  // [num_seqs + 1], of each sequence's tasks for one KV head
};

__device__ __forceinline__ int tasks_of(const Attention& a, const Split& split, int64_t seq, bool is_split) {
  const Rows of = rows_of(a, seq, 0);
  if (of.count == 0 || (of.count <= split.rows) != is_split) return 0;
  if (!is_split) return int((of.count + 2 * kGroupRows - 1) / (2 * kGroupRows));
  return int((of.count + kGroupRows - 1) / kGroupRows) * max(spans_of(int(of.length)), 1);
}

// One block: counts the tasks of all sequences, in as many parts as it has threads.
__global__ void __launch_bounds__(kPlanThreads) plan_kernel(const Attention a, const Split split, Tasks decode,
                                                            Tasks prefill) {
  __shared__ int counts[2][2][kPlanThreads];
  const int thread = threadIdx.x;
  const int64_t each = (a.num_seqs + kPlanThreads - 1) / kPlanThreads;
  const int64_t first = thread * each, end = min(first + each, a.num_seqs);
  int sums[2] = {};
  for (int64_t seq = first; seq < end; ++seq) {
    for (int kind = 0; kind < 2; ++kind) sums[kind] += tasks_of(a, split, seq, kind == 0);
  }
  for (int kind = 0; kind < 2; ++kind) counts[0][kind][thread] = sums[kind];
  __syncthreads();
  int now = 0;
  for (int offset = 1; offset < kPlanThreads; offset *= 2, now ^= 1) {
    for (int kind = 0; kind < 2; ++kind) {
      counts[now ^ 1][kind][thread] =
          counts[now][kind][thread] + (thread >= offset ? counts[now][kind][thread - offset] : 0);
    }
    __syncthreads();
  }
  for (int kind = 0; kind < 2; ++kind) {
    const Tasks& tasks = kind == 0 ? decode : prefill;
    int start = counts[now][kind][thread] - sums[kind];
    for (int64_t seq = first; seq < end; ++seq) {
      tasks.starts[seq] = start;
      start += tasks_of(a, split, seq, kind == 0);
    }
    if (thread == kPlanThreads - 1) {
      tasks.starts[a.num_seqs] = counts[now][kind][thread];
      *tasks.next = 0;
    }
  }
}

#if defined(KHUB_WGMMA)

// Which stage is next, and which of its barriers' phases.
template <int kStages>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// What is to be done with a stage.
struct Work {
  uint64_t found;  // a bit for each key that is there
  int seq;         // -1: no more
  int kv_head, first_row, span;
  int key;     // the first
  int groups;  // a bit for each warpgroup that sees one of them
  bool starts_task, ends_span, ends_task;
  bool is_alone;  // of a split sequence: its only span
};

// The last sequence whose first task is at or before `task`: all lanes look at once.
__device__ __forceinline__ int sequence_of(const Tasks& tasks, int64_t num_seqs, int task, int lane) {
  int64_t low = 0, count = num_seqs;  // starts[low] <= task < starts[low + count]
  while (count > 1) {
    const int64_t step = (count + kWarp - 1) / kWarp, at = lane * step;
    const unsigned before = __ballot_sync(kAllLanes, at < count && tasks.starts[low + at] <= task);
    const int last = __popc(before) - 1;  // of those lanes, which are the first ones
    low += last * step;
    count = min(step, count - last * step);
  }
  return int(low);
}

// The keys that rows `first_row` and later see lie in [first, end).
__device__ __forceinline__ void seen_by_rows(const Attention& a, const Rows& of, int64_t first_row, int lane, int* first,
                                             int* end) {
  *first = 0x7fffffff;
  *end = 0;
  const int64_t past = min(first_row + kGroupRows, of.count);
  const int64_t last = first_row < past ? of.query_start + (past - 1) / of.group : -1;
  for (int64_t token = of.query_start + first_row / of.group + lane; token <= last; token += kWarp) {
    const Visible visible = visible_keys(a, token, of.query_end, of.length);
    if (visible.end_key <= visible.first_key) continue;
    *first = min(*first, int(visible.first_key));
    *end = max(*end, int(visible.end_key));
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    *first = min(*first, __shfl_xor_sync(kAllLanes, *first, offset));
    *end = max(*end, __shfl_xor_sync(kAllLanes, *end, offset));
  }
}

// The warp that copies.
template <class T, int kHead, bool kSplit>
struct Producer {
  using S = Shape<kHead, kSplit>;

  const Attention& a;
  const TileMap& key_map;
  const TileMap& value_map;
  uint8_t* stages;
  Landing* full;
  Landing* empty;
  Work* works;
  int lane;
  Turn<S::kStages> turn;

  // Where a key of the sequence is; false: nowhere. A block id out of range cannot be reported from here.
  __device__ __forceinline__ bool find(const Rows& of, int key, int64_t* block, int* slot) const {
    *block = a.block_tables[of.seq * a.block_table_stride + unsigned(key) / unsigned(a.block_size)];
    *slot = int(unsigned(key) % unsigned(a.block_size));
    return *block >= 0 && *block < a.num_blocks;
  }

  __device__ __forceinline__ void wait_for_stage() { empty[turn.stage].wait(turn.parity ^ 1); }

  // After what a stage's barrier waits for was announced or is there.
  __device__ __forceinline__ void hand_over(const Work& work, int bytes) {
    if (lane == 0) {
      works[turn.stage] = work;
      if (bytes > 0) {
        full[turn.stage].expect(bytes);
      } else {
        full[turn.stage].arrive();
      }
    }
    __syncwarp();
  }

  // The tile of keys from work->key on, of which those in [first, end) are seen.
  __device__ __forceinline__ void load(const Rows& of, int first, int end, Work* work) {
    uint8_t* const keys = stages + turn.stage * S::kStageBytes;
    uint8_t* const values = keys + S::kChunks * kChunkBytes;
    const int page = min(int(a.block_size), kKeys), pages = kKeys / page;
    bool valid = work->key >= first && work->key + kKeys <= end;
    int64_t block = 0;
    int slot = 0;
    if (valid && lane < pages) valid = find(of, work->key + lane * page, &block, &slot);
    const bool is_whole = !__any_sync(kAllLanes, !valid);
    wait_for_stage();
    if (!is_whole) return copy_pieces(of, first, end, keys, values, work);
    work->found = ~uint64_t(0);
    hand_over(*work, S::kStageBytes);
    if (lane >= pages) return;
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      const int to = c * kChunkBytes + lane * page * kSwizzled;
      copy_tile(keys + to, key_map, c * kSwizzled, slot, int(of.kv_head), int(block), full[turn.stage]);
      copy_tile(values + to, value_map, c * kSwizzled, slot, int(of.kv_head), int(block), full[turn.stage]);
    }
  }

  __device__ __forceinline__ void copy_pieces(const Rows& of, int first, int end, uint8_t* keys, uint8_t* values,
                                              Work* work) {
    constexpr int kPieces = kHead / 8, kAtOnce = kWarp / kPieces;  // keys that a turn of the lanes covers
    const int piece = lane % kPieces;
    const bool inside = piece * 8 < int(a.head_size);
    work->found = 0;
    for (int half = 0; half < kKeys; half += kWarp) {
      const int key = work->key + half + lane;
      int64_t block = 0;
      int slot = 0;
      const bool found = key >= first && key < end && find(of, key, &block, &slot);
      if (!found) block = 0;
      const int64_t key_offset = block * a.key.block_stride + slot * a.key.slot_stride + of.kv_head * a.key.head_stride;
      const int64_t value_offset =
          block * a.value.block_stride + slot * a.value.slot_stride + of.kv_head * a.value.head_stride;
      const uint32_t all = __ballot_sync(kAllLanes, found);
      work->found |= uint64_t(all) << half;
      for (int i = 0; i < kWarp; i += kAtOnce) {
        const int from = i + lane / kPieces, row = half + from;
        const int64_t key_at = __shfl_sync(kAllLanes, key_offset, from) + piece * 8;
        const int64_t value_at = __shfl_sync(kAllLanes, value_offset, from) + piece * 8;
        const bool valid = (all >> from & 1u) && inside;
        const int to = piece / 8 * kChunkBytes + row * kSwizzled + ((piece ^ row) & 7) * 16;
        copy_async(keys + to, static_cast<const T*>(a.key.data) + (valid ? key_at : 0), valid);
        copy_async(values + to, static_cast<const T*>(a.value.data) + (valid ? value_at : 0), valid);
      }
    }
    commit_copies();
    wait_copies<0>();
    publish_shared();
    __syncwarp();
    hand_over(*work, 0);
  }

  __device__ __forceinline__ void run_task(const Rows& of, Work work) {
    int firsts[S::kGroups], ends[S::kGroups], first = 0x7fffffff, end = 0;
#pragma unroll
    for (int g = 0; g < S::kGroups; ++g) {
      seen_by_rows(a, of, work.first_row + g * kGroupRows, lane, &firsts[g], &ends[g]);
      first = min(first, firsts[g]);
      end = max(end, ends[g]);
    }
    int start = first / kKeys * kKeys, until = end;
    if (kSplit) {
      start = max(span_start(work.span), start);
      until = min(span_start(work.span + 1), end);
    }
    work.starts_task = true;
    if (start >= until) {
      work.ends_span = work.ends_task = true;
      wait_for_stage();
      hand_over(work, 0);
      turn.next();
      return;
    }
    int next_span = span_start(span_of(start) + 1);
    for (work.key = start; work.key < until; work.key += kKeys, turn.next()) {
      const int next = work.key + kKeys;
      work.ends_task = next >= until;
      work.ends_span = work.ends_task || next >= next_span;
      if (next >= next_span) next_span = span_start(span_of(next) + 1);
      work.groups = 0;
#pragma unroll
      for (int g = 0; g < S::kGroups; ++g) work.groups |= int(next > firsts[g] && work.key < ends[g]) << g;
      load(of, first, end, &work);
      work.starts_task = false;
    }
  }

  __device__ __forceinline__ void run(const Tasks& tasks) {
    const int kv_heads = int(a.num_kv_heads), count = tasks.starts[a.num_seqs] * kv_heads;
    Work work = {};
    for (;;) {
      int task = lane == 0 ? int(atomicAdd(tasks.next, 1u)) : 0;
      task = count - 1 - __shfl_sync(kAllLanes, task, 0);
      if (task < 0) break;
      const int seq = sequence_of(tasks, a.num_seqs, task / kv_heads, lane);
      const Rows of = rows_of(a, seq, task % kv_heads);
      const int own = task / kv_heads - tasks.starts[seq], spans = kSplit ? max(spans_of(int(of.length)), 1) : 1;
      work = {};
      work.seq = seq;
      work.kv_head = int(of.kv_head);
      work.span = own % spans;
      work.first_row = own / spans * S::kRows;
      work.is_alone = spans == 1;
      run_task(of, work);
    }
    work = {};
    work.seq = -1;
    wait_for_stage();
    hand_over(work, 0);
  }
};

// Four floats of a thread for each 8 elements of a head: its registers are taken.
struct InShared {
  float* first;
  int stride;

  __device__ __forceinline__ float* operator[](int n) const { return first + n * stride; }
};

// A warpgroup that multiplies.
template <class T, int kHead, bool kSplit>
struct Consumer {
  using S = Shape<kHead, kSplit>;

  const Attention& a;
  const Split& split;
  int group, lane;
  int strip_row;  // this warp's first, of a task's
  Row* rows;      // this warp's
  Joined<T, kHead, InShared> joined;
  Strip<T, kHead> strip;

  __device__ __forceinline__ void add(const Work& work, const uint8_t* keys) {
    const uint8_t* const values = keys + S::kChunks * kChunkBytes;
    float scores[kKeys / 8][4];
    begin_products();
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k) {
      multiply_rows<0>(scores, strip.query[k], operand(keys + k / 4 * kChunkBytes + k % 4 * 32), k > 0,
                       static_cast<T*>(nullptr));
    }
    finish_products(scores);
    uint32_t weights[kKeys / 16][4] = {};
    if (rows[0].head >= 0) {
      strip.template weigh<kKeys>(a, scores, work.key, work.found, lane);
#pragma unroll
      for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float(&s)[4] = scores[2 * k + i / 2];
          weights[k][i] = pack(s[i % 2 * 2], s[i % 2 * 2 + 1], static_cast<T*>(nullptr));
        }
      }
    }
    begin_products();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      multiply_rows<1>(strip.output, weights[k], operand_across(values + k * 16 * kSwizzled, kChunkBytes), true,
                       static_cast<T*>(nullptr));
    }
    finish_products(strip.output);
  }

  __device__ __forceinline__ void run(const uint8_t* stages, Landing* full, Landing* empty, const Work* works) {
    Turn<S::kStages> turn;
    for (;; turn.next()) {
      full[turn.stage].wait(turn.parity);
      const Work& work = works[turn.stage];
      if (work.seq < 0) break;
      if (work.starts_task) {
        strip.open(a, rows_of(a, work.seq, work.kv_head), work.first_row + strip_row, lane, rows);
        if (!kSplit) joined.clear();
      }
      if (work.groups >> group & 1) add(work, stages + turn.stage * S::kStageBytes);
      if (work.ends_span) end_span(work);
      __syncwarp();
      if (lane == 0) empty[turn.stage].arrive();
    }
  }

  __device__ __forceinline__ void end_span(const Work& work) {
    strip.close();
    if (!kSplit) {
      joined.add(strip);
      strip.clear();
      if (work.ends_task) write_out<T, kHead>(a, strip.rows, joined, lane);
    } else if (work.is_alone) {
      write_out<T, kHead>(a, strip.rows, strip, lane);
    } else {
      Rows of = {};
      of.seq = work.seq;
      of.kv_head = work.kv_head;
      write_partial(a, split, of, strip, work.first_row + strip_row, work.span, lane);
    }
  }
};

#endif

template <class T, int kHead, bool kSplit>
__global__ void __launch_bounds__(kThreads, 1)
    attend_wgmma_kernel(const Attention a, const Split split, const __grid_constant__ TileMap key_map,
                        const __grid_constant__ TileMap value_map, const Tasks tasks) {
#if defined(KHUB_WGMMA)
  using S = Shape<kHead, kSplit>;
  __shared__ Landing full[S::kRings][S::kStages], empty[S::kRings][S::kStages];
  __shared__ Work works[S::kRings][S::kStages];
  __shared__ Row rows[kAllGroups * kWarpgroup / kWarp][kRows];
  uint8_t* const shared = dynamic_shared();
  uint8_t* const stages = shared + (kTileAlign - reinterpret_cast<uintptr_t>(shared) % kTileAlign) % kTileAlign;
  constexpr int kRingBytes = S::kStages * S::kStageBytes;
  if (threadIdx.x == 0) {
    for (int ring = 0; ring < S::kRings; ++ring) {
      for (int s = 0; s < S::kStages; ++s) {
        full[ring][s].init(1);
        empty[ring][s].init(S::kWarps);
      }
    }
    publish_landings();
  }
  __syncthreads();
  const int group = threadIdx.x / kWarpgroup, lane = threadIdx.x % kWarp;
  if (group == kAllGroups) {
    give_registers<80>();
    const int ring = threadIdx.x % kWarpgroup / kWarp;
    if (ring >= S::kRings) return;
    Producer<T, kHead, kSplit> producer = {
        a, key_map, value_map, stages + ring * kRingBytes, full[ring], empty[ring], works[ring], lane, {}};
    producer.run(tasks);
  } else {
    take_registers<216>();
    const int ring = group / S::kGroups, strip = threadIdx.x / kWarp;
    float* const joined = reinterpret_cast<float*>(stages + S::kRings * kRingBytes) + 4 * threadIdx.x;
    Consumer<T, kHead, kSplit> consumer = {a,
                                           split,
                                           group % S::kGroups,
                                           lane,
                                           strip * kRows % S::kRows,
                                           rows[strip],
                                           {{joined, 4 * kAllGroups * kWarpgroup}, {}, {}},
                                           {}};
    consumer.run(stages + ring * kRingBytes, full[ring], empty[ring], works[ring]);
  }
#endif
}

constexpr int64_t kMostTasks = 0x7fffffff;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// More than these there are not, whatever the lengths.
int64_t most_tasks(const Attention& a, const Split& split, bool is_split) {
  const int64_t rows = a.num_tokens * (a.num_heads / a.num_kv_heads);
  return a.num_kv_heads * (is_split ? a.num_seqs * ceil_div(split.rows, kGroupRows) * split.spans
                                    : rows / (2 * kGroupRows) + a.num_seqs);
}

Tiling tiles_of(const Attention& a, const CacheView& view) {
  const int64_t sizes[4] = {a.head_size, a.block_size, a.num_kv_heads, a.num_blocks};
  const int64_t strides[4] = {1, view.slot_stride, view.head_stride, view.block_stride};
  Tiling tiling = {view.data, 4, {}, {}, {kSwizzled, int(min(a.block_size, int64_t(kKeys))), 1, 1}};
  for (int i = 0; i < 4; ++i) {
    tiling.sizes[i] = i == 0 ? 2 * sizes[i] : sizes[i];
    // The stride of a dimension of one means nothing.
    tiling.strides[i] = i == 0 ? 1 : sizes[i] == 1 ? 16 : 2 * strides[i];
  }
  return tiling;
}

bool has_tiles(const Attention& a, const CacheView& view) {
  const Tiling tiling = tiles_of(a, view);
  for (int i = 0; i < 4; ++i) {
    if (tiling.sizes[i] < 1 || tiling.sizes[i] > 0x7fffffff) return false;
    if (tiling.strides[i] < 1 || tiling.strides[i] >= int64_t(1) << 40) return false;
  }
  return true;
}

template <class T, int kHead, bool kSplit>
const char* launch_tasks(const Attention& a, const Split& split, const TileMap& keys, const TileMap& values,
                         const Tasks& tasks, int processors, void* stream) {
  using S = Shape<kHead, kSplit>;
  const cudaError_t allowed = allow_shared(attend_wgmma_kernel<T, kHead, kSplit>, S::kShared);
  if (allowed != cudaSuccess) return cudaGetErrorString(allowed);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(min(most_tasks(a, split, kSplit), int64_t(processors))));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = S::kShared;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t launched =
      cudaLaunchKernelEx(&config, attend_wgmma_kernel<T, kHead, kSplit>, a, split, keys, values, tasks);
  return launched == cudaSuccess ? nullptr : cudaGetErrorString(launched);
}

template <class T, int kHead>
const char* attend_with(const Attention& a, const Split& split, void* stream) {
  TileMap keys, values;
  const char* error = make_tile_map(tiles_of(a, a.key), &keys);
  if (!error) error = make_tile_map(tiles_of(a, a.value), &values);
  int processors = 0;
  if (!error) error = device_attribute(cudaDevAttrMultiProcessorCount, &processors);
  if (error) return error;
  int32_t* const plan = reinterpret_cast<int32_t*>(split.partials + attend_partials(a));
  const Tasks decode = {reinterpret_cast<unsigned*>(plan), plan + 2};
  const Tasks prefill = {decode.next + 1, decode.starts + a.num_seqs + 1};
  error = launch(plan_kernel, dim3(1), dim3(kPlanThreads), stream, a, split, decode, prefill);
  if (!error && split.rows > 0) {
    error = launch_tasks<T, kHead, true>(a, split, keys, values, decode, processors, stream);
    if (!error && split.spans > 1) {
      error = launch(merge_kernel<T, kHead>, dim3(unsigned(a.num_seqs * split.rows), unsigned(a.num_kv_heads)),
                     dim3(kHead), stream, a, split);
    }
  }
  // Who has how many tokens is known on the device alone; without query_start_loc everybody has one.
  if (!error && a.query_start_loc && a.num_tokens * (a.num_heads / a.num_kv_heads) > split.rows) {
    error = launch_tasks<T, kHead, false>(a, split, keys, values, prefill, processors, stream);
  }
  return error;
}

template <class T>
const char* attend_typed(const Attention& a, const Split& split, void* stream) {
  return width_of(a) == 64 ? attend_with<T, 64>(a, split, stream) : attend_with<T, 128>(a, split, stream);
}

}  // namespace

bool fits_wgmma(const Attention& a) {
  const Split split = split_of(a);
  return a.cache_type == CacheType::same && a.head_size <= 128 && a.block_size % 8 == 0 &&
         (kKeys % a.block_size == 0 || a.block_size % kKeys == 0) && has_tiles(a, a.key) && has_tiles(a, a.value) &&
         most_tasks(a, split, true) <= kMostTasks && most_tasks(a, split, false) <= kMostTasks && has_wgmma();
}

int64_t attend_plan_words(const Attention& a) { return 2 * (a.num_seqs + 2); }

const char* attend_wgmma(const Attention& a, float* partials, void* stream) {
  Split split = split_of(a);
  split.partials = partials;
  return a.dtype == DType::f16 ? attend_typed<__half>(a, split, stream) : attend_typed<__nv_bfloat16>(a, split, stream);
}

}  // namespace khub::cuda
