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

template <class T>
__global__ void __launch_bounds__(kThreads) apply_rotary_kernel(const ApplyRotary a) {
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= a.sizes[0] * a.sizes[1] * a.sizes[2] * a.sizes[3]) return;
  const int64_t row = index / a.sizes[3];
  const int64_t at[4] = {row / a.sizes[2] / a.sizes[1], row / a.sizes[2] % a.sizes[1], row % a.sizes[2],
                         index % a.sizes[3]};
  const auto place = [&](const View& view) {
    int64_t offset = 0;
    for (int i = 0; i < 4; ++i) offset += at[i] * view.strides[i];
    return static_cast<T*>(view.data) + offset;
  };
  const float x = to_float(*place(a.x1)), y = to_float(*place(a.x2));
  const float c = to_float(*place(a.cos)), s = (a.conj ? -1.0f : 1.0f) * to_float(*place(a.sin));
  from_float(x * c - y * s, place(a.out1));
  from_float(x * s + y * c, place(a.out2));
}

constexpr int64_t kLargestHead = 256;

// V elements that are read and written at once: 16 bytes, or one where something is not aligned.
template <class T, int V>
struct alignas(V * sizeof(T)) Vector {
  T elements[V];
};

// `lanes` threads, a power of two up to a warp, have one head of a token; V elements each at a time. The head lies in
// shared memory as floats, where its pairs meet. Roofline: qkv in, and out of it as much, in accesses of V elements.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) qk_norm_rope_cache_kernel(const QkNormRopeCache f, const int lanes) {
  __shared__ float rows[kThreads * kLargestHead / kWarp];
  const Rotary& r = f.rotary;
  const int64_t token = blockIdx.x, position = r.positions[token], size = f.head_size;
  // Neither it nor a slot can be reported from here; they must at least not be followed.
  if (position < 0 || position >= r.max_position) return;
  const int64_t slot = token < f.num_mapped ? f.slot_mapping[token] : -1;
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes;
  const int64_t h = int64_t(blockIdx.y) * (kThreads / lanes) + group;
  const bool is_query = h < r.query.count, is_value = h >= r.query.count + r.key.count;
  const bool is_cached = slot >= 0 && slot < f.num_slots && h < r.query.count + 2 * r.key.count;
  const bool is_active = is_query || is_cached;
  const Heads& heads = is_query ? r.query : is_value ? f.value : r.key;
  const int64_t index = is_query ? h : is_value ? h - r.query.count - r.key.count : h - r.query.count;
  T* from = static_cast<T*>(heads.data) + token * heads.token_stride + index * heads.head_stride;
  T* to = from;
  if (!is_query && is_active) {
    const PagedHeads& cache = is_value ? f.value_cache : f.key_cache;
    to = static_cast<T*>(cache.data) + slot / f.block_size * cache.block_stride +
         slot % f.block_size * cache.token_stride + index * cache.head_stride;
  }
  float* row = rows + group * size;
  float squares = 0.0f;
  for (int64_t i = lane * V; is_active && i < size; i += lanes * V) {
    const Vector<T, V> x = *reinterpret_cast<const Vector<T, V>*>(from + i);
    if (is_value) *reinterpret_cast<Vector<T, V>*>(to + i) = x;
    for (int v = 0; v < V; ++v) {
      row[i + v] = to_float(x.elements[v]);
      squares += row[i + v] * row[i + v];
    }
  }
  for (int offset = lanes / 2; offset > 0; offset /= 2) squares += __shfl_xor_sync(kAllLanes, squares, offset);
  __syncwarp();
  if (!is_active || is_value) return;
  const T* weight = static_cast<const T*>(is_query ? f.query_weight : f.key_weight);
  const float scale = 1.0f / sqrtf(squares / float(size) + f.epsilon);
  const auto normed = [&](int64_t i) { return weight ? row[i] * scale * to_float(weight[i]) : row[i]; };
  for (int64_t i = lane * V; i < size; i += lanes * V) {
    Vector<T, V> out;
    for (int v = 0; v < V; ++v) {
      const int64_t at = i + v;
      float y = normed(at);
      if (at < 2 * r.half) {
        const bool is_first = r.is_neox ? at < r.half : at % 2 == 0;
        const int64_t distance = r.is_neox ? r.half : 1, pair = r.is_neox ? at % r.half : at / 2;
        const int64_t angle = position * r.cache_stride + pair;
        const float c = load_as(r.cos_sin_cache, r.cache_dtype, angle);
        const float s = load_as(r.cos_sin_cache, r.cache_dtype, angle + r.half);
        y = is_first ? y * c - normed(at + distance) * s : y * c + normed(at - distance) * s;
      }
      from_float(y, out.elements + v);
    }
    *reinterpret_cast<Vector<T, V>*>(to + i) = out;
  }
}

// Whether every head can be read and written 16 bytes at a time.
template <class T>
bool takes_vectors(const QkNormRopeCache& f) {
  constexpr int64_t kAtOnce = 16 / int64_t(sizeof(T));
  const auto starts = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  bool fits = f.head_size % kAtOnce == 0 && starts(f.rotary.query.data) && f.rotary.query.token_stride % kAtOnce == 0;
  for (const PagedHeads* cache : {&f.key_cache, &f.value_cache}) {
    fits = fits && starts(cache->data);
    for (const int64_t stride : {cache->block_stride, cache->token_stride, cache->head_stride}) {
      fits = fits && stride % kAtOnce == 0;
    }
  }
  return fits;
}

template <class T, int V>
const char* launch_qk_norm_rope_cache(const QkNormRopeCache& f, void* stream) {
  int lanes = 1;
  while (lanes < kWarp && lanes * V < f.head_size) lanes *= 2;
  const int64_t heads = f.rotary.query.count + 2 * f.rotary.key.count, at_once = kThreads / lanes;
  const dim3 grid(unsigned(f.rotary.num_tokens), unsigned((heads + at_once - 1) / at_once));
  return launch(qk_norm_rope_cache_kernel<T, V>, grid, dim3(kThreads), stream, f, lanes);
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

const char* apply_rotary(const ApplyRotary& a, void* stream) {
  const int64_t blocks = (a.rows() * a.sizes[3] + kThreads - 1) / kThreads;
  return dispatch(a.dtype, blocks, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return launch(apply_rotary_kernel<T>, dim3(unsigned(blocks)), dim3(kThreads), stream, a);
  });
}

const char* qk_norm_rope_cache(const QkNormRopeCache& f, void* stream) {
  if (f.head_size > kLargestHead) return "heads of more than 256 elements";
  if (f.rotary.query.count + f.rotary.key.count == 0) return nullptr;
  return dispatch(f.rotary.dtype, f.rotary.num_tokens, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kAtOnce = 16 / int(sizeof(T));
    return takes_vectors<T>(f) ? launch_qk_norm_rope_cache<T, kAtOnce>(f, stream)
                               : launch_qk_norm_rope_cache<T, 1>(f, stream);
  });
}

}  // namespace khub::cuda
