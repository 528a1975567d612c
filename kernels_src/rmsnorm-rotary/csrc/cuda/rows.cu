// One block per row (or token): neighbouring threads read neighbouring pieces of 16 bytes, or elements where
// something is not aligned. Roofline: every element in once and out once; a row of up to 32 vectors of a warp's (8192
// elements of two bytes) stays in registers between its sum of squares and its product.
#include <initializer_list>
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

// V elements that are read and written at once: 16 bytes, or one where something is not aligned.
template <class T, int V>
struct alignas(V * sizeof(T)) Vector {
  T elements[V];
};

template <class T, int V>
__device__ __forceinline__ void load(const T* from, float (&to)[V]) {
  const Vector<T, V> vector = *reinterpret_cast<const Vector<T, V>*>(from);
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = to_float(vector.elements[v]);
}

template <class T, int V>
__device__ __forceinline__ void store(const float (&from)[V], T* to) {
  Vector<T, V> vector;
#pragma unroll
  for (int v = 0; v < V; ++v) from_float(from[v], vector.elements + v);
  *reinterpret_cast<Vector<T, V>*>(to) = vector;
}

template <class T, int V, bool kResidual>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const RmsNorm n) {
  constexpr int kHeld = 4;  // vectors of a thread that stay in registers
  constexpr int64_t kTurn = int64_t(kThreads) * V;
  const int64_t row = blockIdx.x, start = int64_t(threadIdx.x) * V;
  const T* input = static_cast<const T*>(n.input) + row * n.input_stride;
  T* residual = kResidual ? static_cast<T*>(n.residual) + row * n.residual_stride : nullptr;
  T* out = static_cast<T*>(n.out) + row * n.out_stride;
  // The residual sum is not rounded before it is normalised: what is not held is added again, not read back.
  const auto elements = [&](int64_t i, float (&x)[V]) {
    load(input + i, x);
    if constexpr (kResidual) {
      float more[V];
      load(residual + i, more);
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] += more[v];
    }
  };
  float held[kHeld][V], squares = 0.0f;
  const auto square = [&](const float (&x)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) squares += x[v] * x[v];
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    if (start + h * kTurn >= n.size) continue;
    elements(start + h * kTurn, held[h]);
    square(held[h]);
  }
  for (int64_t i = start + kHeld * kTurn; i < n.size; i += kTurn) {
    float x[V];
    elements(i, x);
    square(x);
  }
  const float scale = 1.0f / sqrtf(block_sum(squares) / float(n.size) + n.epsilon);
  const auto finish = [&](int64_t i, const float (&x)[V]) {
    float weight[V], result[V];
    load(static_cast<const T*>(n.weight) + i, weight);
#pragma unroll
    for (int v = 0; v < V; ++v) result[v] = x[v] * scale * weight[v];
    if constexpr (kResidual) store(x, residual + i);
    store(result, out + i);
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    if (start + h * kTurn < n.size) finish(start + h * kTurn, held[h]);
  }
  for (int64_t i = start + kHeld * kTurn; i < n.size; i += kTurn) {
    float x[V];
    elements(i, x);
    finish(i, x);
  }
}

// The expressions of torch's own kernels, so that eager torch's bits are these.
template <Function kFunction>
__device__ __forceinline__ float activated(float x, float threshold) {
  if constexpr (kFunction == Function::silu) return x / (1.0f + expf(-x));
  if constexpr (kFunction == Function::gelu_quick) return x / (1.0f + expf(-1.702f * x));
  if constexpr (kFunction == Function::gelu) return x * 0.5f * (1.0f + erff(x * 0.70710678f));
  if constexpr (kFunction == Function::gelu_tanh) {
    return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * (x * x * x))));
  }
  return x <= threshold ? 0.0f : x;
}

template <class T, int V, Function kFunction>
__global__ void __launch_bounds__(kThreads) activate_kernel(const Activation a) {
  const T* gate = static_cast<const T*>(a.gate) + int64_t(blockIdx.x) * a.input_stride;
  const T* up = a.up ? static_cast<const T*>(a.up) + int64_t(blockIdx.x) * a.input_stride : nullptr;
  T* out = static_cast<T*>(a.out) + int64_t(blockIdx.x) * a.out_stride;
  for (int64_t i = int64_t(threadIdx.x) * V; i < a.size; i += int64_t(kThreads) * V) {
    float x[V];
    load(gate + i, x);
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = activated<kFunction>(x[v], a.threshold);
    if (up) {
      float by[V];
      load(up + i, by);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        T rounded;  // as between two of torch's operators
        from_float(x[v], &rounded);
        x[v] = to_float(rounded) * by[v];
      }
    }
    store(x, out + i);
  }
}

__device__ __forceinline__ float load_as(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::f16: return to_float(static_cast<const __half*>(data)[index]);
    case DType::bf16: return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
    default: return static_cast<const float*>(data)[index];
  }
}

// V pairs at a time; more than one where the halves of a head lie apart (NeoX).
template <class T, int V>
__global__ void __launch_bounds__(kThreads) rotary_kernel(const Rotary r) {
  const int64_t token = blockIdx.x;
  const int64_t position = r.positions[token];
  // It cannot be reported from here; it must at least not be followed.
  if (position < 0 || position >= r.max_position) return;
  const int64_t pairs = (r.query.count + r.key.count) * r.half;
  for (int64_t p = int64_t(threadIdx.x) * V; p < pairs; p += int64_t(kThreads) * V) {
    const int64_t h = p / r.half, i = p % r.half;
    const bool is_query = h < r.query.count;
    const Heads& heads = is_query ? r.query : r.key;
    T* head = static_cast<T*>(heads.data) + token * heads.token_stride +
              (is_query ? h : h - r.query.count) * heads.head_stride;
    T* first = head + (r.is_neox ? i : 2 * i);
    T* second = head + (r.is_neox ? r.half + i : 2 * i + 1);
    float x[V], y[V], turned_x[V], turned_y[V];
    load(first, x);
    load(second, y);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t angle = position * r.cache_stride + i + v;
      const float c = load_as(r.cos_sin_cache, r.cache_dtype, angle);
      const float s = load_as(r.cos_sin_cache, r.cache_dtype, angle + r.half);
      turned_x[v] = x[v] * c - y[v] * s;
      turned_y[v] = y[v] * c + x[v] * s;
    }
    store(turned_x, first);
    store(turned_y, second);
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

template <class T>
constexpr int kAtOnce = 16 / int(sizeof(T));

bool on_16_bytes(std::initializer_list<const void*> pointers) {
  for (const void* data : pointers) {
    if (reinterpret_cast<uintptr_t>(data) % 16) return false;
  }
  return true;
}

template <class T>
bool whole_vectors(std::initializer_list<int64_t> counts) {
  for (const int64_t count : counts) {
    if (count % kAtOnce<T>) return false;
  }
  return true;
}

template <class T>
bool takes_vectors(const RmsNorm& n) {
  return on_16_bytes({n.input, n.residual, n.out, n.weight}) &&
         whole_vectors<T>({n.size, n.input_stride, n.residual ? n.residual_stride : 0, n.out_stride});
}

template <class T>
bool takes_vectors(const Rotary& r) {
  return r.is_neox && on_16_bytes({r.query.data, r.key.data}) &&
         whole_vectors<T>({r.half, r.query.token_stride, r.query.head_stride, r.key.token_stride, r.key.head_stride});
}

template <class T>
bool takes_vectors(const QkNormRopeCache& f) {
  const Heads& qkv = f.rotary.query;
  bool fits = on_16_bytes({qkv.data, f.key_cache.data, f.value_cache.data}) &&
              whole_vectors<T>({f.head_size, qkv.token_stride});
  for (const PagedHeads* cache : {&f.key_cache, &f.value_cache}) {
    fits = fits && whole_vectors<T>({cache->block_stride, cache->token_stride, cache->head_stride});
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
    constexpr int V = kAtOnce<T>;
    const bool vectors = takes_vectors<T>(n);
    const auto kernel = n.residual ? (vectors ? rms_norm_kernel<T, V, true> : rms_norm_kernel<T, 1, true>)
                                   : (vectors ? rms_norm_kernel<T, V, false> : rms_norm_kernel<T, 1, false>);
    return launch(kernel, dim3(unsigned(n.rows)), dim3(kThreads), stream, n);
  });
}

namespace {

template <Function kFunction>
const char* launch_activate(const Activation& a, void* stream) {
  return dispatch(a.dtype, a.rows, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const bool vectors =
        on_16_bytes({a.gate, a.up, a.out}) && whole_vectors<T>({a.size, a.input_stride, a.out_stride});
    const auto kernel = vectors ? activate_kernel<T, kAtOnce<T>, kFunction> : activate_kernel<T, 1, kFunction>;
    return launch(kernel, dim3(unsigned(a.rows)), dim3(kThreads), stream, a);
  });
}

}  // namespace

const char* activate(const Activation& a, void* stream) {
  switch (a.function) {
    case Function::silu: return launch_activate<Function::silu>(a, stream);
    case Function::gelu: return launch_activate<Function::gelu>(a, stream);
    case Function::gelu_tanh: return launch_activate<Function::gelu_tanh>(a, stream);
    case Function::gelu_quick: return launch_activate<Function::gelu_quick>(a, stream);
    default: return launch_activate<Function::fatrelu>(a, stream);
  }
}

const char* rotary(const Rotary& r, void* stream) {
  return dispatch(r.dtype, r.num_tokens, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto kernel = takes_vectors<T>(r) ? rotary_kernel<T, kAtOnce<T>> : rotary_kernel<T, 1>;
    return launch(kernel, dim3(unsigned(r.num_tokens)), dim3(kThreads), stream, r);
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
    return takes_vectors<T>(f) ? launch_qk_norm_rope_cache<T, kAtOnce<T>>(f, stream)
                               : launch_qk_norm_rope_cache<T, 1>(f, stream);
  });
}

}  // namespace khub::cuda
