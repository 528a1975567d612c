// The product on tensor cores, for weights whose rows are whole 16-byte pieces and an x in half precision, or one of any
// type that may be rounded to the 8 bits of the weights.
//
// A block computes a tile of the output and walks along k. Pieces of weight rows and of x are on their way to shared
// memory, several stages of them, while what has come is widened in registers and multiplied (Marlin, Frantar et al.
// 2024, has weights rearranged for this; here they stay as stored). Each lane takes 8 consecutive k of a weight row: a
// word of nibbles, or two of bytes. Which k meet in a tensor-core product is thereby given, and x is taken in the same
// order, as products do not ask for another.
//
// Sums are float32: of the weights' whole numbers over kFold channels or a group, whichever is less; of these times
// their scales over a slice of k; and of the slices. Slices have places given by N and K alone. For few rows each has a
// block of its own, and merge_kernel adds what they leave; for many a block walks all of them. So a row has the same
// bits in any batch.
//
// Roofline: for few rows the bytes of the weights, each read once; x comes from the second cache, once for every 64
// columns; partial sums are 8 * M * N bytes for each slice, where there is more than one. For many rows mma.sync's
// rate, which on sm_90 is well below that of wgmma: products of bytes by bytes go to matmul_wgmma.cu there.
#include <type_traits>

#include "plan.h"
#include "ptx.h"
#include "widen.h"

namespace khub::cuda {

namespace {

constexpr int kFold = 128;
constexpr int kSliceStep = 256;  // a slice is so many channels or a multiple, so that no group or stage is cut
constexpr int kStepK = 32;       // channels that a lane's 8 of each weight row are part of

// Tiles of kRows x kColumns, of which a warp has kTilesM x kTilesN of 16 x 8. X is what x is multiplied as: its own
// type or, rounded, the weights'.
template <class X, Format kFormat, int kRows>
struct Shape {
  static constexpr int kWeightBits = kFormat == Format::int4 ? 4 : 8;
  static constexpr bool kSmall = kRows == 16, kCoarse = sizeof(X) == 1;
  static constexpr int kTilesM = kSmall ? 1 : 2, kTilesN = kSmall ? 2 : 4;
  static constexpr int kWarpsM = kRows / (16 * kTilesM), kWarpsN = 4;
  static constexpr int kColumns = kWarpsN * kTilesN * 8;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;
  static constexpr int kStageK = kSmall ? 128 : 64;
  using Sum = typename std::conditional<std::is_same<X, int8_t>::value, int, float>::type;

  // 16-byte pieces of rows, those of one k together. A turn of eight lanes copies kAcross rows and goes on along k. The
  // distance from k to k is such that these eight, and the lanes of a load, are in all banks.
  template <int kBits, int kOfRows>
  struct Part {
    static constexpr int kPieces = kStageK * kBits / 128;
    static constexpr int kAcross = kBits == 16 ? 2 : 4, kStride = kOfRows + kAcross;
    uint4 pieces[kPieces * kStride];

    // Those of rows from `from` on, `stride` bytes apart; zeros past `rows` and `bytes`.
    __device__ __forceinline__ void ask(const void* data, int64_t offset, int64_t stride, int64_t rows, int64_t bytes) {
      constexpr int kAlong = kPieces * kAcross / 8, kRowsOfTurn = kThreads / 8 / kAlong * kAcross;
      const int octet = threadIdx.x / 8, lane = threadIdx.x % 8;
      const int piece = octet % kAlong * (8 / kAcross) + lane / kAcross;
      const int first = octet / kAlong * kAcross + lane % kAcross;
      const uint8_t* from = static_cast<const uint8_t*>(data);
#pragma unroll
      for (int i = 0; i < kOfRows; i += kRowsOfTurn) {
        const bool valid = first + i < rows && piece * 16 < bytes;
        copy_async(pieces + piece * kStride + first + i,
                   valid ? from + offset + (first + i) * stride + piece * 16 : from, valid);
      }
    }

    // A lane's part of a row's 32 channels: 8 of bytes.
    __device__ __forceinline__ uint2 bytes(int step, int row, int t) const {
      return reinterpret_cast<const uint2*>(pieces + (2 * step + t / 2) * kStride + row)[t % 2];
    }
  };

  struct Stage {
    Part<8 * sizeof(X), kRows> x;
    Part<kWeightBits, kColumns> weight;
  };
  static constexpr int kFit = int((48 << 10) / sizeof(Stage));
  static constexpr int kStages = kFit < 6 ? kFit : 6;
  static_assert(kStages >= 2, "one stage comes while another is multiplied");
};

// Asks for kStageK channels from k on, zeros where there are none.
template <class X, class S>
__device__ __forceinline__ void ask(const QuantizedMatmul& q, const Plan& plan, int64_t row0, int64_t column0, int k,
                                    int end, typename S::Stage* stage) {
  const int64_t left = end - k;
  const int64_t at = int64_t(k) * S::kWeightBits / 8;
  stage->weight.ask(q.weight, column0 * q.row_bytes + at, q.row_bytes, q.n - column0, left * S::kWeightBits / 8);
  stage->x.ask(plan.x, row0 * plan.x_stride + int64_t(k) * sizeof(X), plan.x_stride, q.m - row0,
               left * int64_t(sizeof(X)));
}

// 8 values of a row of x from `piece` on, as pairs in the order in which weights widen.
template <Format kFormat>
__device__ __forceinline__ void arrange(const uint4& x, uint32_t (&to)[4]) {
  if constexpr (kFormat != Format::int4) {
    to[0] = x.x;
    to[1] = x.y;
    to[2] = x.z;
    to[3] = x.w;
  } else {
    to[0] = __byte_perm(x.x, x.z, 0x5410);
    to[1] = __byte_perm(x.x, x.z, 0x7632);
    to[2] = __byte_perm(x.y, x.w, 0x5410);
    to[3] = __byte_perm(x.y, x.w, 0x7632);
  }
}

// A lane's fragments of 16 rows of x for one step: of two products where X has 16 bits, of one where it has 8.
template <class X, class S, Format kFormat>
__device__ __forceinline__ void load_x(const typename S::Stage& stage, int step, int row, int t, uint32_t (&to)[2][4]) {
  if constexpr (S::kCoarse) {
    const uint2 upper = stage.x.bytes(step, row, t), lower = stage.x.bytes(step, row + 8, t);
    to[0][0] = upper.x;
    to[0][1] = lower.x;
    to[0][2] = upper.y;
    to[0][3] = lower.y;
  } else {
    const uint4* from = stage.x.pieces + (4 * step + t) * stage.x.kStride + row;
    uint32_t upper[4], lower[4];
    arrange<kFormat>(from[0], upper);
    arrange<kFormat>(from[8], lower);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      to[i][0] = upper[2 * i];
      to[i][1] = lower[2 * i];
      to[i][2] = upper[2 * i + 1];
      to[i][3] = lower[2 * i + 1];
    }
  }
}

// And of 8 weight rows.
template <class X, class S, Format kFormat>
__device__ __forceinline__ void load_weights(const typename S::Stage& stage, int step, int column, int t,
                                             uint32_t minus, uint32_t (&to)[4]) {
  X* const type = nullptr;
  if constexpr (kFormat == Format::int4) {
    const uint4* piece = stage.weight.pieces + step * stage.weight.kStride + column;
    widen_nibbles(reinterpret_cast<const uint32_t*>(piece)[t], minus, to, type);
  } else {
    const uint2 words = stage.weight.bytes(step, column, t);
    if constexpr (S::kCoarse) {
      to[0] = words.x;
      to[1] = words.y;
    } else if constexpr (kFormat == Format::int8) {
      widen_bytes(words.x, to, type);
      widen_bytes(words.y, to + 2, type);
    } else {
      widen_e4m3(words.x, to, type);
      widen_e4m3(words.y, to + 2, type);
    }
  }
}

// A scale as its bits: what uses it waits for it, not what loads it.
__device__ __forceinline__ uint32_t load_scale_bits(const QuantizedMatmul& q, int64_t at) {
  if (q.scale_dtype == DType::f32) return static_cast<const uint32_t*>(q.scales)[at];
  return static_cast<const uint16_t*>(q.scales)[at];
}

__device__ __forceinline__ float scale_of(const QuantizedMatmul& q, uint32_t bits) {
  if (q.scale_dtype == DType::bf16) bits <<= 16;
  float scale;
  memcpy(&scale, &bits, sizeof(scale));
  if (q.scale_dtype == DType::f16) {
    __half half;
    memcpy(&half, &bits, sizeof(half));
    scale = to_float(half);
  }
  return scale;
}

// What a warp holds of the output. Lane 4 g + t has rows g and g + 8 and columns 2 t and 2 t + 1 of each 16 x 8.
template <class S, class Sum>
struct Sums {
  Sum tile[S::kTilesM][S::kTilesN][4];

  __device__ __forceinline__ void clear() {
    each([](Sum& sum, int, int, int) { sum = 0; });
  }

  template <class F>
  __device__ __forceinline__ void each(const F& f) {
#pragma unroll
    for (int m = 0; m < S::kTilesM; ++m) {
#pragma unroll
      for (int n = 0; n < S::kTilesN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) f(tile[m][n][i], m, n, i);
      }
    }
  }
};

// Element (row, column) of the output from its sum.
template <class T>
__device__ __forceinline__ void write_as(const QuantizedMatmul& q, int64_t row, int64_t column, float sum) {
  const float bias = q.bias ? to_float(static_cast<const T*>(q.bias)[column]) : 0.0f;
  from_float(sum + bias, static_cast<T*>(q.out) + row * q.out_stride + column);
}

// Where X is what x was rounded to, the output's type is known when the kernel runs.
template <class X>
__device__ __forceinline__ void write(const QuantizedMatmul& q, int64_t row, int64_t column, float sum) {
  if constexpr (sizeof(X) == 2) {
    write_as<X>(q, row, column, sum);
  } else {
    switch (q.dtype) {
      case DType::f32: return write_as<float>(q, row, column, sum);
      case DType::f16: return write_as<__half>(q, row, column, sum);
      case DType::bf16: return write_as<__nv_bfloat16>(q, row, column, sum);
    }
  }
}

template <class X, Format kFormat, int kRows>
__global__ void __launch_bounds__(Shape<X, kFormat, kRows>::kThreads) matmul_mma_kernel(const QuantizedMatmul q,
                                                                                      const Plan plan) {
  using S = Shape<X, kFormat, kRows>;
  alignas(128) __shared__ typename S::Stage stages[S::kStages];
  X* const type = nullptr;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int64_t row0 = int64_t(blockIdx.x / plan.column_blocks) * kRows;
  const int64_t column0 = int64_t(blockIdx.x % plan.column_blocks) * S::kColumns;
  const int warp_row = warp / S::kWarpsN * S::kTilesM * 16, warp_column = warp % S::kWarpsN * S::kTilesN * 8;
  const bool has_part = row0 + warp_row < q.m && column0 + warp_column < q.n;
  const int begin = plan.partials ? int(blockIdx.z) * plan.slice : 0;
  const int end = plan.partials ? int(min(q.k, int64_t(begin) + plan.slice)) : int(q.k);
  const auto column_of = [&](int in_warp) { return min(column0 + warp_column + in_warp, q.n - 1); };

  // Zero points are asked for one fold before they are needed, scales when a fold begins: they are needed at its end.
  uint32_t next_zeros[S::kTilesN] = {}, minus[S::kTilesN] = {}, scales[S::kTilesN][2];
  float x_scales[S::kTilesM][2];
  const auto load_zeros = [&](int k) {
    const int64_t group = min(int64_t(k >> plan.group_shift), q.groups - 1);
#pragma unroll
    for (int n = 0; n < S::kTilesN; ++n) {
      if (q.zeros) next_zeros[n] = q.zeros[column_of(n * 8 + g) * q.groups + group];
    }
  };
  const auto open_fold = [&](int k) {
    const int64_t group = k >> plan.group_shift;
#pragma unroll
    for (int n = 0; n < S::kTilesN; ++n) {
      if constexpr (kFormat == Format::int4) minus[n] = minus_zero(q.zeros ? next_zeros[n] : 8, type);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t column = column_of(n * 8 + 2 * t + i);
        // Blocks of scales come with 128 rows each, others with one.
        scales[n][i] = load_scale_bits(q, (q.scale_rows == 1 ? column : column / 128) * q.groups + group);
      }
    }
    if constexpr (kFormat == Format::int4) load_zeros(k + plan.fold);
    if constexpr (S::kCoarse) {
      const int64_t x_group = plan.x_groups == 1 ? 0 : group;
#pragma unroll
      for (int m = 0; m < S::kTilesM; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int64_t row = min(row0 + warp_row + 16 * m + g + 8 * i, q.m - 1);
          x_scales[m][i] = plan.x_scales[row * plan.x_groups + x_group];
        }
      }
    }
  };

  Sums<S, typename S::Sum> folded;
  Sums<S, float> sliced, total;
  folded.clear();
  sliced.clear();
  total.clear();
  load_zeros(begin);
#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) {
    ask<X, S>(q, plan, row0, column0, begin + s * S::kStageK, end, &stages[s]);
    commit_copies();
  }
  int slot = 0, free_slot = S::kStages - 1;
  for (int k = begin; k < end; k += S::kStageK) {
    wait_copies<S::kStages - 2>();
    __syncthreads();  // this stage has come for all, and all are done with the one before
    ask<X, S>(q, plan, row0, column0, k + (S::kStages - 1) * S::kStageK, end, &stages[free_slot]);
    commit_copies();
    const typename S::Stage& stage = stages[slot];
    free_slot = slot;
    slot = slot + 1 == S::kStages ? 0 : slot + 1;
    if (!has_part) continue;
#pragma unroll
    for (int step = 0; step < S::kStageK / kStepK; ++step) {
      const int at = k + step * kStepK;
      if (at >= end) break;
      if ((at & (plan.fold - 1)) == 0) open_fold(at);
      uint32_t a[S::kTilesM][2][4];
#pragma unroll
      for (int m = 0; m < S::kTilesM; ++m) load_x<X, S, kFormat>(stage, step, warp_row + 16 * m + g, t, a[m]);
#pragma unroll
      for (int n = 0; n < S::kTilesN; ++n) {
        uint32_t b[4];
        load_weights<X, S, kFormat>(stage, step, warp_column + 8 * n + g, t, minus[n], b);
#pragma unroll
        for (int i = 0; i < (S::kCoarse ? 1 : 2); ++i) {
#pragma unroll
          for (int m = 0; m < S::kTilesM; ++m) mma(folded.tile[m][n], a[m][i], b[2 * i], b[2 * i + 1], type);
        }
      }
      if (((at + kStepK) & (plan.fold - 1)) == 0 || at + kStepK >= end) {
        sliced.each([&](float& sum, int m, int n, int i) {
          float scale = scale_of(q, scales[n][i % 2]);
          if constexpr (S::kCoarse) scale *= x_scales[m][i / 2];
          sum = fmaf(float(folded.tile[m][n][i]), scale, sum);
        });
        folded.clear();
      }
    }
    if (k + S::kStageK >= end || (k + S::kStageK) % plan.slice == 0) {
      total.each([&](float& sum, int m, int n, int i) { sum += sliced.tile[m][n][i]; });
      sliced.clear();
    }
  }
  if (!has_part) return;
  total.each([&](float& sum, int m, int n, int i) {
    const int64_t row = row0 + warp_row + 16 * m + g + i / 2 * 8;
    const int64_t column = column0 + warp_column + 8 * n + 2 * t + i % 2;
    if (row >= q.m || column >= q.n) return;
    if (plan.partials) {
      plan.partials[(blockIdx.z * q.m + row) * q.n + column] = sum;
    } else {
      write<X>(q, row, column, sum);
    }
  });
}

constexpr int kMergeThreads = 256;

// The slices of one element of the output, in the order in which a block that walks them adds them.
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const QuantizedMatmul q, const Plan plan, int slices) {
  const int64_t at = int64_t(blockIdx.x) * kMergeThreads + threadIdx.x, size = q.m * q.n;
  if (at >= size) return;
  float sum = 0.0f;
  for (int s = 0; s < slices; ++s) sum += plan.partials[s * size + at];
  write<float>(q, at / q.n, at % q.n, sum);
}

__device__ __forceinline__ float largest_of(int8_t*) { return 127.0f; }
__device__ __forceinline__ float largest_of(__nv_fp8_e4m3*) { return 448.0f; }
__device__ __forceinline__ void round_to(float value, int8_t* to) { *to = int8_t(rintf(value)); }
__device__ __forceinline__ void round_to(float value, __nv_fp8_e4m3* to) { *to = __nv_fp8_e4m3(value); }

__device__ __forceinline__ float x_at(const QuantizedMatmul& q, int64_t at) {
  switch (q.dtype) {
    case DType::f16: return to_float(static_cast<const __half*>(q.x)[at]);
    case DType::bf16: return to_float(static_cast<const __nv_bfloat16*>(q.x)[at]);
    default: return static_cast<const float*>(q.x)[at];
  }
}

constexpr int kRoundThreads = 128;

// A block rounds a row of x over one of its groups of channels, whose largest becomes X's largest.
template <class X>
__global__ void __launch_bounds__(kRoundThreads) round_kernel(const QuantizedMatmul q, X* to, float* scales, int64_t groups) {
  const int64_t row = blockIdx.x / groups, group = blockIdx.x % groups;
  const int64_t begin = group * q.group_size, end = groups == 1 ? q.k : min(q.k, begin + q.group_size);
  __shared__ float mosts[kRoundThreads / kWarp], wrongs[kRoundThreads / kWarp];
  float most = 0.0f, wrong = 0.0f;
  for (int64_t k = begin + threadIdx.x; k < end; k += kRoundThreads) {
    const float x = x_at(q, row * q.x_stride + k);
    most = fmaxf(most, fabsf(x));
    wrong += x - x;  // 0, and NaN for what is not finite
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, offset));
    wrong += __shfl_xor_sync(kAllLanes, wrong, offset);
  }
  mosts[threadIdx.x / kWarp] = most;
  wrongs[threadIdx.x / kWarp] = wrong;
  __syncthreads();
  for (int warp = 0; warp < kRoundThreads / kWarp; ++warp) {
    most = fmaxf(most, mosts[warp]);
    wrong += wrongs[warp];
  }
  const float scale = most / largest_of(to);
  const bool divides = wrong == 0.0f && scale >= 0x1p-126f;  // of less there is nothing
  const float inverse = divides ? largest_of(to) / most : 0.0f;
  for (int64_t k = begin + threadIdx.x; k < end; k += kRoundThreads) {
    round_to(divides ? x_at(q, row * q.x_stride + k) * inverse : 0.0f, to + row * q.k + k);
  }
  if (threadIdx.x == 0) scales[blockIdx.x] = divides ? scale : wrong;
}

constexpr int64_t kSmallRows = 16, kLargeRows = 64;
constexpr int64_t kEnoughBlocks = 264;                // of few rows: two for each multiprocessor of a large device
constexpr int64_t kFilled = 132;                      // of many: one, as its registers allow
constexpr int64_t kLeastSlice = 512;                  // of channels, that are worth a block
constexpr int64_t kMostPartials = int64_t(64) << 20;  // floats

// By n and k alone: m must not decide in what order a row is added up.
int64_t slice_of(const QuantizedMatmul& q) {
  const int64_t wanted = min(kEnoughBlocks / ceil_div(q.n, 64), q.k / kLeastSlice);
  return ceil_div(ceil_div(q.k, max(wanted, int64_t(1))), kSliceStep) * kSliceStep;
}

bool is_coarse(const QuantizedMatmul& q) { return q.coarse && q.bits == 8; }

bool takes_wgmma(const QuantizedMatmul& q) { return is_coarse(q) && fits_wgmma(q); }

int64_t column_blocks_of(const QuantizedMatmul& q) {
  return ceil_div(q.n, takes_wgmma(q) ? kWgmmaColumns : q.m <= kSmallRows ? 64 : 128);
}

int64_t row_blocks_of(const QuantizedMatmul& q) {
  return ceil_div(q.m, takes_wgmma(q) ? wgmma_rows(q.m) : q.m <= kSmallRows ? kSmallRows : kLargeRows);
}

const char* merge(const QuantizedMatmul& q, const Plan& plan, void* stream) {
  return launch(merge_kernel, dim3(unsigned(ceil_div(q.m * q.n, kMergeThreads))), dim3(kMergeThreads), stream, q, plan,
                int(ceil_div(q.k, plan.slice)));
}

template <class X, Format kFormat, int kRows>
const char* multiply_rows(const QuantizedMatmul& q, const Plan& plan, void* stream) {
  const int64_t slices = plan.partials ? ceil_div(q.k, plan.slice) : 1;
  const dim3 grid(unsigned(plan.column_blocks * row_blocks_of(q)), 1, unsigned(slices));
  const char* error =
      launch(matmul_mma_kernel<X, kFormat, kRows>, grid, dim3(Shape<X, kFormat, kRows>::kThreads), stream, q, plan);
  return error || !plan.partials ? error : merge(q, plan, stream);
}

template <class X, Format kFormat>
const char* multiply(const QuantizedMatmul& q, const Plan& plan, void* stream) {
  return q.m <= kSmallRows ? multiply_rows<X, kFormat, kSmallRows>(q, plan, stream)
                           : multiply_rows<X, kFormat, kLargeRows>(q, plan, stream);
}

template <class X>
const char* multiply_as_it_is(const QuantizedMatmul& q, Plan plan, void* stream) {
  plan.x = q.x;
  plan.x_stride = q.x_stride * int64_t(sizeof(X));
  switch (format_of(q)) {
    case Format::int4: return multiply<X, Format::int4>(q, plan, stream);
    case Format::int8: return multiply<X, Format::int8>(q, plan, stream);
    case Format::e4m3: return multiply<X, Format::e4m3>(q, plan, stream);
  }
  return "unknown format";
}

// Of x: by row, or where the weights' are by block, by row and 128 channels.
int64_t x_groups_of(const QuantizedMatmul& q) { return is_coarse(q) ? q.groups : 0; }

template <class X, Format kFormat>
const char* multiply_rounded(const QuantizedMatmul& q, Plan plan, float* workspace, void* stream) {
  // The scales come last: what is rounded has to be on 16 bytes.
  X* const x = reinterpret_cast<X*>(workspace);
  float* const scales = workspace + q.m * q.k / 4;
  plan.x = x;
  plan.x_stride = q.k;
  plan.x_scales = scales;
  plan.x_groups = x_groups_of(q);
  const char* error = launch(round_kernel<X>, dim3(unsigned(q.m * plan.x_groups)), dim3(kRoundThreads), stream, q, x,
                             scales, plan.x_groups);
  if (error || !takes_wgmma(q)) return error ? error : multiply<X, kFormat>(q, plan, stream);
  error = multiply_wgmma(q, plan, stream);
  return error || !plan.partials ? error : merge(q, plan, stream);
}

bool on_16_bytes(const void* from, int64_t stride_bytes) {
  return (reinterpret_cast<uintptr_t>(from) | uintptr_t(stride_bytes)) % 16 == 0;
}

int64_t partials_of(const QuantizedMatmul& q) {
  const int64_t slices = ceil_div(q.k, slice_of(q)), floats = slices * q.m * q.n;
  const bool filled = column_blocks_of(q) * row_blocks_of(q) >= kFilled;
  return slices == 1 || filled || floats > kMostPartials ? 0 : floats;
}

}  // namespace

bool fits_mma(const QuantizedMatmul& q) {
  const bool x_fits = is_coarse(q) ? q.m * q.groups <= 0x7fffffff
                                   : q.dtype != DType::f32 && on_16_bytes(q.x, q.m > 1 ? q.x_stride * 2 : 0);
  return x_fits && q.k % 8 == 0 && on_16_bytes(q.weight, q.row_bytes) && q.k <= 1 << 30 &&
         column_blocks_of(q) * row_blocks_of(q) <= 0x7fffffff;
}

int64_t matmul_mma_floats(const QuantizedMatmul& q) {
  return (is_coarse(q) ? q.m * q.k / 4 + q.m * x_groups_of(q) : 0) + partials_of(q);
}

const char* matmul_mma(const QuantizedMatmul& q, float* workspace, void* stream) {
  if (q.m == 0 || q.n == 0) return nullptr;
  Plan plan = {};
  plan.partials = partials_of(q) ? workspace + matmul_mma_floats(q) - partials_of(q) : nullptr;
  plan.slice = int(slice_of(q));
  plan.fold = q.groups == 1 || q.group_size > kFold ? kFold : int(q.group_size);
  plan.group_shift = 31;
  for (int shift = 5; q.groups > 1 && shift < 31; ++shift) {
    if (q.group_size == int64_t(1) << shift) plan.group_shift = shift;
  }
  plan.column_blocks = int(column_blocks_of(q));
  if (is_coarse(q)) {
    return q.e4m3 ? multiply_rounded<__nv_fp8_e4m3, Format::e4m3>(q, plan, workspace, stream)
                  : multiply_rounded<int8_t, Format::int8>(q, plan, workspace, stream);
  }
  return q.dtype == DType::f16 ? multiply_as_it_is<__half>(q, plan, stream)
                               : multiply_as_it_is<__nv_bfloat16>(q, plan, stream);
}

}  // namespace khub::cuda
