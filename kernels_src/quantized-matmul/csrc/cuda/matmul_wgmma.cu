// The product of bytes by bytes on sm_90a: int8 and e4m3 weights, x rounded to the same.
//
// A tile of the output is 64 or 128 rows of x by 128 weight rows. Tiles of both, 128 channels deep, are copied to shared
// memory by one thread, several stages of them on their way, and land on a barrier each; 64 rows of x a warpgroup, the
// others multiply what has landed from where it lies, and hand the stage back. Blocks stay, one to a multiprocessor, and
// take tiles in turn: the first stages of the next come while the sums of one are written.
//
// Sums: of e4m3 products, float32 over 128 channels, as tensor cores keep fewer bits of what they add up; these, in
// float32, over a slice of k, with their scales where these are by block; of int8 products whole numbers. Then slices, as
// in matmul_mma.cu. What is added to what is given by N and K alone: a row has the same bits in any batch. On a
// device that has these instructions all such products come here, so that few rows and many agree as well.
//
// Roofline: for few rows the bytes of the weights, each read once; for many wgmma's rate for bytes, twice that of 16
// bits. But a stage of 32 KiB feeds 2.1 million multiply-adds, 512 cycles at that rate, so a multiprocessor wants 64 bytes
// a cycle of the second cache, about twice its part of that: without sharing tiles between blocks (multicast) this, not
// wgmma, is likely to be the bound. Not measured.
#include "plan.h"
#include "wgmma_bytes.h"

namespace khub::cuda {

namespace {

constexpr int kStepK = 32;          // channels of a product
constexpr int kStageK = kSwizzled;  // of a stage
constexpr int kGroupRows = 64;      // of a warpgroup
constexpr int kColumns = int(kWgmmaColumns);
constexpr int kBand = 16;  // row tiles whose x stays in the second cache while all weights pass

template <int kGroups>
struct Shape {
  static constexpr int kRows = kGroups * kGroupRows;
  static constexpr int kThreads = (kGroups + 1) * kWarpgroup;  // the last warpgroup copies
  static constexpr int kXBytes = kRows * kStageK, kStageBytes = kXBytes + kColumns * kStageK;
  static constexpr int kStages = (192 << 10) / kStageBytes;
  static constexpr int kShared = kStages * kStageBytes + kTileAlign;
};

// A tile of the output, and the channels that are summed for it.
struct Task {
  int64_t row0, column0;
  int begin, end, slice;
};

// Tiles in the order in which they are taken: bands of row tiles, and in each down before across.
__device__ __forceinline__ Task task_at(const QuantizedMatmul& q, const Plan& plan, int rows, int64_t row_blocks,
                                        int64_t at) {
  const int64_t tiles = row_blocks * plan.column_blocks;
  const int64_t tile = at % tiles, band = tile / (kBand * plan.column_blocks), in_band = tile % (kBand * plan.column_blocks);
  const int64_t height = min(int64_t(kBand), row_blocks - band * kBand);
  Task task;
  task.row0 = (band * kBand + in_band % height) * rows;
  task.column0 = in_band / height * kColumns;
  task.slice = int(at / tiles);
  task.begin = plan.partials ? task.slice * plan.slice : 0;
  task.end = plan.partials ? int(min(q.k, int64_t(task.begin) + plan.slice)) : int(q.k);
  return task;
}

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

#if defined(KHUB_WGMMA)

__device__ __forceinline__ void clear(float (&sums)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) sums[i] = 0.0f;
}

// What a thread of a warpgroup holds of the output.
template <class X>
struct Sums {
  using Sum = typename std::conditional<std::is_same<X, int8_t>::value, int, float>::type;
  Sum folded[64];
  float sliced[64], total[64];
};

template <class X>
struct Consumer {
  // Channels that are summed in one go: of whole numbers as many as fit 31 bits.
  static constexpr int kFold = std::is_same<X, int8_t>::value ? 1 << 16 : kStageK;

  const QuantizedMatmul& q;
  const Plan& plan;
  const Task& task;
  int64_t rows[2];  // this thread's, of the output
  int columns;      // its first one, in the tile
  Sums<X>& sums;

  __device__ __forceinline__ float x_scale(int i, int64_t group) const {
    return plan.x_scales[min(rows[i], q.m - 1) * plan.x_groups + (plan.x_groups == 1 ? 0 : group)];
  }

  __device__ __forceinline__ float weight_scale(int64_t row, int64_t group) const {
    return static_cast<const float*>(q.scales)[row * q.groups + group];
  }

  // Channels [.., k) are in `folded`: on to `sliced`. Blocks of scales are a tile's rows and a stage's channels.
  __device__ __forceinline__ void fold(int k) {
    float scales[2] = {1.0f, 1.0f};
    if (q.groups > 1) {
      const int64_t group = (k - 1) / kStageK;
      const float scale = weight_scale(task.column0 / kColumns, group);
      for (int i = 0; i < 2; ++i) scales[i] = scale * x_scale(i, group);
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) sums.sliced[i] = fmaf(float(sums.folded[i]), scales[i % 4 / 2], sums.sliced[i]);
  }

  // A slice is complete: with the scales of rows and columns, where it has no others, to `total`.
  __device__ __forceinline__ void add_slice() {
    const float row_scales[2] = {q.groups > 1 ? 1.0f : x_scale(0, 0), q.groups > 1 ? 1.0f : x_scale(1, 0)};
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      float scale = row_scales[i % 4 / 2];
      if (q.groups == 1) {
        const int64_t column = min(task.column0 + columns + i / 4 * 8 + i % 2, q.n - 1);
        scale *= weight_scale(q.scale_rows == 1 ? column : column / q.scale_rows, 0);
      }
      // Not fused: split slices are rounded before they are added.
      sums.total[i] += __fmul_rn(sums.sliced[i], scale);
    }
    clear(sums.sliced);
  }

  __device__ __forceinline__ void store() const {
    if (plan.partials) return store_in(plan.partials + task.slice * q.m * q.n, q.n, static_cast<const float*>(nullptr));
    switch (q.dtype) {
      case DType::f32: return store_as<float>();
      case DType::f16: return store_as<__half>();
      case DType::bf16: return store_as<__nv_bfloat16>();
    }
  }

  template <class T>
  __device__ __forceinline__ void store_as() const {
    store_in(static_cast<T*>(q.out), q.out_stride, static_cast<const T*>(q.bias));
  }

  // A thread has pairs of columns: one store for both, where their places allow it.
  template <class T>
  __device__ __forceinline__ void store_in(T* out, int64_t stride, const T* bias) const {
    struct alignas(2 * sizeof(T)) Pair {
      T both[2];
    };
    const bool whole = (q.n | stride) % 2 == 0 && reinterpret_cast<uintptr_t>(out) % sizeof(Pair) == 0;
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
      const int64_t row = rows[i % 4 / 2], column = task.column0 + columns + i / 4 * 8;
      if (row >= q.m || column >= q.n) continue;
      T* const to = out + row * stride + column;
      Pair pair;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const bool valid = bias && column + j < q.n;
        from_float(sums.total[i + j] + (valid ? to_float(bias[column + j]) : 0.0f), &pair.both[j]);
      }
      if (whole) {
        *reinterpret_cast<Pair*>(to) = pair;
      } else {
        to[0] = pair.both[0];
        if (column + 1 < q.n) to[1] = pair.both[1];
      }
    }
  }
};

#endif

template <class X, int kGroups>
__global__ void __launch_bounds__(Shape<kGroups>::kThreads, 1)
    matmul_wgmma_kernel(const QuantizedMatmul q, const Plan plan, const __grid_constant__ TileMap x_map,
                        const __grid_constant__ TileMap weight_map, int64_t row_blocks, int64_t tasks) {
#if defined(KHUB_WGMMA)
  using S = Shape<kGroups>;
  __shared__ Landing full[S::kStages], empty[S::kStages];
  uint8_t* const shared = dynamic_shared();
  uint8_t* const stages = shared + (kTileAlign - reinterpret_cast<uintptr_t>(shared) % kTileAlign) % kTileAlign;
  if (threadIdx.x == 0) {
    for (int s = 0; s < S::kStages; ++s) {
      full[s].init(1);
      empty[s].init(kGroups * kWarpgroup / kWarp);  // a lane of each warp that multiplies
    }
    publish_landings();
  }
  __syncthreads();
  const int group = threadIdx.x / kWarpgroup;
  Turn<S::kStages> turn;
  if (group == kGroups) {
    if constexpr (kGroups > 1) give_registers<40>();
    if (threadIdx.x % kWarpgroup != 0) return;
    for (int64_t at = blockIdx.x; at < tasks; at += gridDim.x) {
      const Task task = task_at(q, plan, S::kRows, row_blocks, at);
      for (int k = task.begin; k < task.end; k += kStageK, turn.next()) {
        empty[turn.stage].wait(turn.parity ^ 1);
        uint8_t* const stage = stages + turn.stage * S::kStageBytes;
        full[turn.stage].expect(S::kStageBytes);
        copy_tile(stage, x_map, k, int(task.row0), full[turn.stage]);
        copy_tile(stage + S::kXBytes, weight_map, k, int(task.column0), full[turn.stage]);
      }
    }
  } else {
    if constexpr (kGroups > 1) take_registers<232>();
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x % kWarpgroup / kWarp;
    Sums<X> sums;
    for (int64_t at = blockIdx.x; at < tasks; at += gridDim.x) {
      const Task task = task_at(q, plan, S::kRows, row_blocks, at);
      const int64_t row = task.row0 + group * kGroupRows + warp * 16 + lane / 4;
      Consumer<X> consumer = {q, plan, task, {row, row + 8}, lane % 4 * 2, sums};
      clear(sums.sliced);
      clear(sums.total);
      bool add = false;
      for (int k = task.begin; k < task.end; k += kStageK, turn.next()) {
        const uint8_t* const stage = stages + turn.stage * S::kStageBytes;
        const uint8_t* const x = stage + group * kGroupRows * kStageK;
        const uint8_t* const weights = stage + S::kXBytes;
        full[turn.stage].wait(turn.parity);
        begin_products();
#pragma unroll
        for (int at_k = 0; at_k < kStageK; at_k += kStepK) {
          multiply_tile(sums.folded, operand(x + at_k), operand(weights + at_k), add || at_k > 0,
                        static_cast<X*>(nullptr));
        }
        finish_products(sums.folded);
        if (lane == 0) empty[turn.stage].arrive();
        const int done = k + kStageK;
        const bool ends = done >= task.end, slice_ends = ends || done % plan.slice == 0;
        add = !slice_ends && done % Consumer<X>::kFold != 0;
        if (!add) consumer.fold(done);
        if (slice_ends) consumer.add_slice();
      }
      consumer.store();
    }
  }
#endif
}

// Tiles of `tile_rows` x 128 bytes of a [rows, bytes] matrix whose rows are `stride` bytes apart.
Tiling tiles_of(const void* data, int64_t rows, int64_t bytes, int64_t stride, int tile_rows) {
  return {data, 2, {bytes, rows}, {1, stride}, {kSwizzled, tile_rows}};
}

template <class X, int kGroups>
const char* multiply(const QuantizedMatmul& q, const Plan& plan, void* stream) {
  using S = Shape<kGroups>;
  TileMap x_map, weight_map;
  const char* error = make_tile_map(tiles_of(plan.x, q.m, q.k, plan.x_stride, S::kRows), &x_map);
  if (!error) error = make_tile_map(tiles_of(q.weight, q.n, q.k, q.row_bytes, kColumns), &weight_map);
  int processors = 0;
  if (!error) error = device_attribute(cudaDevAttrMultiProcessorCount, &processors);
  if (error) return error;
  const cudaError_t allowed = allow_shared(matmul_wgmma_kernel<X, kGroups>, S::kShared);
  if (allowed != cudaSuccess) return cudaGetErrorString(allowed);
  const int64_t row_blocks = ceil_div(q.m, S::kRows);
  const int64_t tasks = row_blocks * plan.column_blocks * (plan.partials ? ceil_div(q.k, plan.slice) : 1);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(tasks < processors ? tasks : processors));
  config.blockDim = dim3(S::kThreads);
  config.dynamicSmemBytes = S::kShared;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t launched = cudaLaunchKernelEx(&config, matmul_wgmma_kernel<X, kGroups>, q, plan, x_map, weight_map,
                                                  row_blocks, tasks);
  return launched == cudaSuccess ? nullptr : cudaGetErrorString(launched);
}

template <class X>
const char* multiply_bytes(const QuantizedMatmul& q, const Plan& plan, void* stream) {
  return wgmma_rows(q.m) == kGroupRows ? multiply<X, 1>(q, plan, stream) : multiply<X, 2>(q, plan, stream);
}

}  // namespace

// A tile's place is two numbers of 31 bits.
bool fits_wgmma(const QuantizedMatmul& q) {
  return q.m < int64_t(1) << 31 && q.n < int64_t(1) << 31 && has_wgmma();
}

const char* multiply_wgmma(const QuantizedMatmul& q, const Plan& plan, void* stream) {
  return q.e4m3 ? multiply_bytes<__nv_fp8_e4m3>(q, plan, stream) : multiply_bytes<int8_t>(q, plan, stream);
}

}  // namespace khub::cuda
