// One block per row (or token): neighbouring threads read neighbouring elements, so every access is
// coalesced.
#include <type_traits>

#include "device.h"
#include "rows_cuda.h"

namespace khub::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxRows = 0x7fffffff;

// The sum over the block, for every thread, always added in the same order.
__device__ __forceinline__ float block_sum(float value) {
  __shared__ float warps[kThreads / kWarp];
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  float total = 0.0f;
  for (int w = 0; w < kThreads / kWarp; ++w) total += warps[w];
  return total;
}

template <class T, bool kResidual>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const RmsNorm n) {
  const int64_t row = blockIdx.x;
  const T* input = static_cast<const T*>(n.input) + row * n.input_stride;
  T* residual = kResidual ? static_cast<T*>(n.residual) + row * n.residual_stride : nullptr;
  T* out = static_cast<T*>(n.out) + row * n.out_stride;
  // The residual sum is not rounded before it is normalised: it is added again instead of being read back.
  const auto element = [&](int64_t i) {
    float x = to_float(input[i]);
    if (kResidual) x += to_float(residual[i]);
    return x;
  };
  float squares = 0.0f;
  for (int64_t i = threadIdx.x; i < n.size; i += kThreads) {
    const float x = element(i);
    squares += x * x;
  }
  const float scale = 1.0f / sqrtf(block_sum(squares) / float(n.size) + n.epsilon);
  for (int64_t i = threadIdx.x; i < n.size; i += kThreads) {
    const float x = element(i);
    if (kResidual) from_float(x, residual + i);
    from_float(x * scale * to_float(static_cast<const T*>(n.weight)[i]), out + i);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) silu_and_mul_kernel(const SiluAndMul s) {
  const T* gate = static_cast<const T*>(s.input) + int64_t(blockIdx.x) * s.input_stride;
  T* out = static_cast<T*>(s.out) + int64_t(blockIdx.x) * s.out_stride;
  for (int64_t i = threadIdx.x; i < s.size; i += kThreads) {
    const float x = to_float(gate[i]);
    from_float(x / (1.0f + expf(-x)) * to_float(gate[s.size + i]), out + i);
  }
}

__device__ __forceinline__ float load_as(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::f16: return to_float(static_cast<const __half*>(data)[index]);
    case DType::bf16: return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
    default: return static_cast<const float*>(data)[index];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) rotary_kernel(const Rotary r) {
  const int64_t token = blockIdx.x;
  const int64_t position = r.positions[token];
  // It cannot be reported from here; it must at least not be followed.
  if (position < 0 || position >= r.max_position) return;
  const int64_t pairs = (r.query.count + r.key.count) * r.half;
  for (int64_t p = threadIdx.x; p < pairs; p += kThreads) {
    const int64_t h = p / r.half, i = p % r.half;
    const bool is_query = h < r.query.count;
    const Heads& heads = is_query ? r.query : r.key;
    T* head = static_cast<T*>(heads.data) + token * heads.token_stride +
              (is_query ? h : h - r.query.count) * heads.head_stride;
    T* first = head + (r.is_neox ? i : 2 * i);
    T* second = head + (r.is_neox ? r.half + i : 2 * i + 1);
    const int64_t angle = position * r.cache_stride + i;
    const float c = load_as(r.cos_sin_cache, r.cache_dtype, angle);
    const float s = load_as(r.cos_sin_cache, r.cache_dtype, angle + r.half);
    const float x = to_float(*first), y = to_float(*second);
    from_float(x * c - y * s, first);
    from_float(y * c + x * s, second);
  }
}

// Calls body with a null pointer to the element type.
template <class Body>
const char* dispatch(DType dtype, int64_t rows, const Body& body) {
  if (rows == 0) return nullptr;
  if (rows > kMaxRows) return "too many rows for one grid";
  switch (dtype) {
    case DType::f32: return body(static_cast<float*>(nullptr));
    case DType::f16: return body(static_cast<__half*>(nullptr));
    case DType::bf16: return body(static_cast<__nv_bfloat16*>(nullptr));
  }
  return "unknown dtype";
}

}  // namespace

const char* rms_norm(const RmsNorm& n, void* stream) {
  return dispatch(n.dtype, n.rows, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto kernel = n.residual ? rms_norm_kernel<T, true> : rms_norm_kernel<T, false>;
    return launch(kernel, dim3(unsigned(n.rows)), dim3(kThreads), stream, n);
  });
}

const char* silu_and_mul(const SiluAndMul& s, void* stream) {
  return dispatch(s.dtype, s.rows, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return launch(silu_and_mul_kernel<T>, dim3(unsigned(s.rows)), dim3(kThreads), stream, s);
  });
}

const char* rotary(const Rotary& r, void* stream) {
  return dispatch(r.dtype, r.num_tokens, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return launch(rotary_kernel<T>, dim3(unsigned(r.num_tokens)), dim3(kThreads), stream, r);
  });
}

}  // namespace khub::cuda
