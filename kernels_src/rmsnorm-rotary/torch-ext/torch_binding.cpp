// The only file that knows torch: checks every argument, then hands raw pointers, sizes and strides to the
// kernels.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "registration.h"

#if defined(CPU_KERNEL)
#include "../csrc/cpu/rows_cpu.h"
#elif defined(CUDA_KERNEL)
#include "../csrc/cuda/rows_cuda.h"
#endif

namespace {

using khub::Activation;
using khub::ApplyRotary;
using khub::DType;
using khub::Function;
using khub::Heads;
using khub::PagedHeads;
using khub::QkNormRopeCache;
using khub::RmsNorm;
using khub::Rotary;
using khub::View;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    default: break;
  }
  STD_TORCH_CHECK(false, name, " must be float32, float16 or bfloat16, got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

void check_like(const Tensor& tensor, const char* name, const Tensor& reference, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.device() == reference.device(), name,
                  " must be on the device of the first argument");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must be ", torch::headeronly::toString(dtype),
                  ", got ", torch::headeronly::toString(tensor.scalar_type()));
}

void check_inner_stride(const Tensor& tensor, const char* name) {
  const int64_t last = tensor.dim() - 1;
  STD_TORCH_CHECK(tensor.size(last) <= 1 || tensor.stride(last) == 1, name,
                  " must be contiguous in its last dimension, got stride ", tensor.stride(last));
}

// The distance between consecutive rows when dimensions [0, dims) are read as one.
int64_t row_stride(const Tensor& tensor, const char* name, int64_t dims) {
  int64_t stride = 0, expected = -1;
  for (int64_t i = dims - 1; i >= 0; --i) {
    if (tensor.size(i) == 1) continue;
    if (expected < 0) {
      stride = tensor.stride(i);
      expected = stride;
    }
    STD_TORCH_CHECK(tensor.numel() == 0 || tensor.stride(i) == expected, name,
                    " must have evenly spaced rows, got stride ", tensor.stride(i), " instead of ", expected,
                    " in dimension ", i, "; make it contiguous");
    expected *= tensor.size(i);
  }
  return stride;
}

int64_t check_rows(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() >= 1, name, " must have at least 1 dimension");
  check_inner_stride(tensor, name);
  return row_stride(tensor, name, tensor.dim() - 1);
}

void check_same_shape(const Tensor& tensor, const char* name, const Tensor& reference,
                      const char* reference_name) {
  bool same = tensor.dim() == reference.dim();
  for (int64_t i = 0; same && i < tensor.dim(); ++i) same = tensor.size(i) == reference.size(i);
  STD_TORCH_CHECK(same, name, " must have the shape of ", reference_name);
}

#if defined(CPU_KERNEL)

// Rows per task such that a task is worth a thread's waking.
int64_t grain(int64_t row_size) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, row_size)); }

void run(const RmsNorm& n, const Tensor&) {
  torch::stable::parallel_for(0, n.rows, grain(n.size),
                              [&](int64_t begin, int64_t end) { khub::cpu::rms_norm(n, begin, end); });
}

void run(const Activation& a, const Tensor&) {
  torch::stable::parallel_for(0, a.rows, grain(a.size),
                              [&](int64_t begin, int64_t end) { khub::cpu::activate(a, begin, end); });
}

void check_positions(const Rotary& r) {
  for (int64_t token = 0; token < r.num_tokens; ++token) {
    STD_TORCH_CHECK(r.positions[token] >= 0 && r.positions[token] < r.max_position, "positions[", token,
                    "] must be a row of cos_sin_cache (0 to ", r.max_position - 1, "), got ",
                    r.positions[token]);
  }
}

void run(const Rotary& r, const Tensor&) {
  check_positions(r);
  torch::stable::parallel_for(0, r.num_tokens, grain((r.query.count + r.key.count) * r.half),
                              [&](int64_t begin, int64_t end) { khub::cpu::rotary(r, begin, end); });
}

void run(const ApplyRotary& a, const Tensor&) {
  torch::stable::parallel_for(0, a.rows(), grain(a.sizes[3]),
                              [&](int64_t begin, int64_t end) { khub::cpu::apply_rotary(a, begin, end); });
}

void run(const QkNormRopeCache& f, const Tensor&) {
  check_positions(f.rotary);
  for (int64_t token = 0; token < f.num_mapped; ++token) {
    STD_TORCH_CHECK(f.slot_mapping[token] < f.num_slots, "slot_mapping[", token, "] must be below the ", f.num_slots,
                    " slots of the cache, got ", f.slot_mapping[token]);
  }
  const int64_t heads = f.rotary.query.count + 2 * f.rotary.key.count;
  torch::stable::parallel_for(0, f.rotary.num_tokens, grain(heads * f.head_size), [&](int64_t begin, int64_t end) {
    khub::cpu::qk_norm_rope_cache(f, begin, end);
  });
}

#elif defined(CUDA_KERNEL)

template <class Launch>
void on_stream(const Tensor& tensor, const Launch& launch) {
  const int32_t device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const char* error = launch(stream);
  STD_TORCH_CHECK(error == nullptr, "the CUDA kernel could not be launched: ", error);
}

void run(const RmsNorm& n, const Tensor& on) {
  on_stream(on, [&](void* stream) { return khub::cuda::rms_norm(n, stream); });
}

void run(const Activation& a, const Tensor& on) {
  on_stream(on, [&](void* stream) { return khub::cuda::activate(a, stream); });
}

void run(const Rotary& r, const Tensor& on) {
  on_stream(on, [&](void* stream) { return khub::cuda::rotary(r, stream); });
}

void run(const ApplyRotary& a, const Tensor& on) {
  on_stream(on, [&](void* stream) { return khub::cuda::apply_rotary(a, stream); });
}

void run(const QkNormRopeCache& f, const Tensor& on) {
  on_stream(on, [&](void* stream) { return khub::cuda::qk_norm_rope_cache(f, stream); });
}

#endif

RmsNorm prepare_norm(const Tensor& input, const Tensor& weight, double epsilon) {
  RmsNorm n = {};
  n.dtype = dtype_of(input, "input");
  n.input_stride = check_rows(input, "input");
  n.size = input.size(input.dim() - 1);
  n.rows = n.size == 0 ? 0 : input.numel() / n.size;
  n.input = input.data_ptr();
  check_like(weight, "weight", input, input.scalar_type());
  STD_TORCH_CHECK(weight.dim() == 1 && weight.size(0) == n.size, "weight must have the ", n.size,
                  " elements of a row of input");
  check_inner_stride(weight, "weight");
  n.weight = weight.data_ptr();
  n.epsilon = float(epsilon);
  return n;
}

void rms_norm(const Tensor& out, const Tensor& input, const Tensor& weight, double epsilon) {
  RmsNorm n = prepare_norm(input, weight, epsilon);
  check_like(out, "out", input, input.scalar_type());
  check_same_shape(out, "out", input, "input");
  n.out_stride = check_rows(out, "out");
  n.out = out.data_ptr();
  run(n, input);
}

void fused_add_rms_norm(const Tensor& input, const Tensor& residual, const Tensor& weight, double epsilon) {
  RmsNorm n = prepare_norm(input, weight, epsilon);
  check_like(residual, "residual", input, input.scalar_type());
  check_same_shape(residual, "residual", input, "input");
  n.residual_stride = check_rows(residual, "residual");
  n.residual = residual.data_ptr();
  n.out_stride = n.input_stride;
  n.out = input.data_ptr();
  run(n, input);
}

Activation prepare_activation(Function function, const Tensor& out, const Tensor& input, int64_t size, bool fits,
                              const char* shape) {
  Activation a = {};
  a.dtype = dtype_of(input, "input");
  a.function = function;
  a.input_stride = check_rows(input, "input");
  a.size = size;
  a.rows = size == 0 ? 0 : out.numel() / size;
  check_like(out, "out", input, input.scalar_type());
  STD_TORCH_CHECK(fits, "out must have the shape of input", shape, size);
  a.out_stride = check_rows(out, "out");
  a.out = out.data_ptr();
  a.gate = input.data_ptr();
  return a;
}

// f(input)
template <Function kFunction>
void activate(const Tensor& out, const Tensor& input) {
  STD_TORCH_CHECK(input.dim() >= 1, "input must have at least 1 dimension");
  bool fits = out.dim() == input.dim();
  for (int64_t i = 0; fits && i < input.dim(); ++i) fits = out.size(i) == input.size(i);
  run(prepare_activation(kFunction, out, input, input.size(input.dim() - 1), fits, ", rows of "), input);
}

// f of one half of each row times the other: the first half, or the last.
void activate_half(Function function, float threshold, bool last_half, const Tensor& out, const Tensor& input) {
  STD_TORCH_CHECK(input.dim() >= 1, "input must have at least 1 dimension");
  const int64_t last = input.dim() - 1, size = input.size(last) / 2;
  STD_TORCH_CHECK(input.size(last) % 2 == 0, "input must have an even last dimension, got ", input.size(last));
  bool fits = out.dim() == input.dim() && out.size(last) == size;
  for (int64_t i = 0; fits && i < last; ++i) fits = out.size(i) == input.size(i);
  Activation a = prepare_activation(function, out, input, size, fits, " with half of its last dimension, ");
  a.threshold = threshold;
  a.up = static_cast<const char*>(a.gate) + size * int64_t(input.element_size());
  if (last_half) std::swap(a.gate, a.up);
  run(a, input);
}

template <Function kFunction, bool kLastHalf = false>
void activate_and_mul(const Tensor& out, const Tensor& input) {
  activate_half(kFunction, 0.0f, kLastHalf, out, input);
}

void fatrelu_and_mul(const Tensor& out, const Tensor& input, double threshold) {
  activate_half(Function::fatrelu, float(threshold), false, out, input);
}

// Tokens in the leading dimensions of `positions`, then [heads * head_size] or [heads, head_size].
Heads heads_of(const Tensor& tensor, const char* name, const Tensor& positions, int64_t head_size) {
  const int64_t dims = positions.dim();
  STD_TORCH_CHECK(tensor.dim() == dims + 1 || tensor.dim() == dims + 2, name, " must have ", dims + 1, " or ",
                  dims + 2, " dimensions (positions has ", dims, "), got ", tensor.dim());
  for (int64_t i = 0; i < dims; ++i) {
    STD_TORCH_CHECK(tensor.size(i) == positions.size(i), name, " must have the size of positions, ",
                    positions.size(i), ", in dimension ", i, ", got ", tensor.size(i));
  }
  check_inner_stride(tensor, name);
  Heads heads = {};
  heads.data = tensor.data_ptr();
  heads.token_stride = row_stride(tensor, name, dims);
  const int64_t last = tensor.dim() - 1;
  if (tensor.dim() == dims + 2) {
    STD_TORCH_CHECK(tensor.size(last) == head_size, name, " must have heads of ", head_size, ", got ",
                    tensor.size(last));
    heads.count = tensor.size(dims);
    heads.head_stride = tensor.stride(dims);
  } else {
    STD_TORCH_CHECK(tensor.size(last) % head_size == 0, name,
                    " must have a last dimension divisible by head_size ", head_size, ", got ",
                    tensor.size(last));
    heads.count = tensor.size(last) / head_size;
    heads.head_stride = head_size;
  }
  return heads;
}

// The tokens; `on` has the dtype and device of their heads.
Rotary prepare_rotary(const Tensor& positions, const Tensor& on, const char* name, int64_t head_size) {
  Rotary r = {};
  r.dtype = dtype_of(on, name);
  check_like(positions, "positions", on, ScalarType::Long);
  STD_TORCH_CHECK(positions.is_contiguous(), "positions must be contiguous");
  STD_TORCH_CHECK(head_size > 0, "head_size must be positive, got ", head_size);
  r.num_tokens = positions.numel();
  r.positions = positions.const_data_ptr<int64_t>();
  return r;
}

void set_angles(Rotary& r, const Tensor& on, const char* name, int64_t head_size, const Tensor& cos_sin_cache,
                bool is_neox) {
  r.cache_dtype = dtype_of(cos_sin_cache, "cos_sin_cache");
  STD_TORCH_CHECK(cos_sin_cache.device() == on.device(), "cos_sin_cache must be on the device of ", name);
  STD_TORCH_CHECK(cos_sin_cache.dim() == 2, "cos_sin_cache must have 2 dimensions, got ",
                  cos_sin_cache.dim());
  check_inner_stride(cos_sin_cache, "cos_sin_cache");
  const int64_t rotated = cos_sin_cache.size(1);
  STD_TORCH_CHECK(rotated % 2 == 0 && rotated <= head_size,
                  "cos_sin_cache must have an even width of at most head_size ", head_size, ", got ",
                  rotated);
  r.half = rotated / 2;
  r.max_position = cos_sin_cache.size(0);
  r.cos_sin_cache = cos_sin_cache.data_ptr();
  r.cache_stride = cos_sin_cache.stride(0);
  r.is_neox = is_neox;
}

void rotary_embedding(const Tensor& positions, const Tensor& query, const std::optional<Tensor>& key,
                      int64_t head_size, const Tensor& cos_sin_cache, bool is_neox) {
  Rotary r = prepare_rotary(positions, query, "query", head_size);
  r.query = heads_of(query, "query", positions, head_size);
  if (key) {
    check_like(*key, "key", query, query.scalar_type());
    r.key = heads_of(*key, "key", positions, head_size);
  }
  set_angles(r, query, "query", head_size, cos_sin_cache, is_neox);
  run(r, query);
}

// A tensor that is read, or written, as one of the shape of x1.
View broadcast(const Tensor& tensor, const char* name, const Tensor& x1) {
  check_like(tensor, name, x1, x1.scalar_type());
  STD_TORCH_CHECK(tensor.dim() <= x1.dim(), name, " must have at most the ", x1.dim(), " dimensions of x1, got ",
                  tensor.dim());
  View view = {tensor.data_ptr(), {0, 0, 0, 0}};
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    const int64_t of_x1 = x1.dim() - tensor.dim() + i;
    STD_TORCH_CHECK(tensor.size(i) == x1.size(of_x1) || tensor.size(i) == 1, name, " must have size 1 or that of x1, ",
                    x1.size(of_x1), ", in dimension ", i, ", got ", tensor.size(i));
    view.strides[4 - tensor.dim() + i] = tensor.size(i) == 1 ? 0 : tensor.stride(i);
  }
  return view;
}

void apply_rotary(const Tensor& x1, const Tensor& x2, const Tensor& cos, const Tensor& sin, const Tensor& out1,
                  const Tensor& out2, bool conj) {
  ApplyRotary a = {};
  a.dtype = dtype_of(x1, "x1");
  STD_TORCH_CHECK(x1.dim() >= 1 && x1.dim() <= 4, "x1 must have 1 to 4 dimensions, got ", x1.dim());
  for (int64_t i = 0; i < 4; ++i) a.sizes[i] = i < 4 - x1.dim() ? 1 : x1.size(i - 4 + x1.dim());
  check_same_shape(x2, "x2", x1, "x1");
  check_same_shape(out1, "out1", x1, "x1");
  check_same_shape(out2, "out2", x1, "x1");
  a.x1 = broadcast(x1, "x1", x1);
  a.x2 = broadcast(x2, "x2", x1);
  a.cos = broadcast(cos, "cos", x1);
  a.sin = broadcast(sin, "sin", x1);
  a.out1 = broadcast(out1, "out1", x1);
  a.out2 = broadcast(out2, "out2", x1);
  a.conj = conj;
  if (x1.numel() == 0) return;
  run(a, x1);
}

// What transformers' apply_rotary_pos_emb is given: the heads are in dimension `unsqueeze_dim` of 4, which cos and sin lack,
// and both halves of these are the same.
void rotate_halves(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin, const Tensor& out_q,
                   const Tensor& out_k, int64_t unsqueeze_dim) {
  STD_TORCH_CHECK(unsqueeze_dim == 1 || unsqueeze_dim == 2, "unsqueeze_dim must be 1 or 2, got ", unsqueeze_dim);
  const int64_t seq_dim = 3 - unsqueeze_dim;
  const auto prepare = [&](const Tensor& x, const char* name, const Tensor& out, const char* out_name) {
    ApplyRotary a = {};
    a.dtype = dtype_of(x, name);
    STD_TORCH_CHECK(x.dim() == 4, name, " must have 4 dimensions, got ", x.dim());
    check_like(out, out_name, x, x.scalar_type());
    check_same_shape(out, out_name, x, name);
    const auto angles = [&](const Tensor& of, const char* of_name) {
      check_like(of, of_name, x, x.scalar_type());
      STD_TORCH_CHECK(of.dim() == 3 && (of.size(0) == 1 || of.size(0) == x.size(0)) && of.size(1) == x.size(seq_dim),
                      of_name, " must have 3 dimensions: 1 or the batch of ", name, ", ", x.size(0), ", its ",
                      x.size(seq_dim), " tokens, and the angles");
      View view = {of.data_ptr(), {of.size(0) == 1 ? 0 : of.stride(0), 0, 0, of.stride(2)}};
      view.strides[seq_dim] = of.stride(1);
      return view;
    };
    check_same_shape(sin, "sin", cos, "cos");
    a.cos = angles(cos, "cos");
    a.sin = angles(sin, "sin");
    const int64_t rotated = cos.size(2);
    STD_TORCH_CHECK(rotated % 2 == 0 && rotated <= x.size(3), "cos must have an even width of at most the ", x.size(3),
                    " elements of a head of ", name, ", got ", rotated);
    for (int64_t i = 0; i < 4; ++i) a.sizes[i] = i < 3 ? x.size(i) : rotated / 2;
    const auto half = [&](const Tensor& of, int64_t first) {
      char* const data = static_cast<char*>(of.data_ptr()) + first * of.stride(3) * int64_t(of.element_size());
      return View{data, {of.stride(0), of.stride(1), of.stride(2), of.stride(3)}};
    };
    a.x1 = half(x, 0);
    a.x2 = half(x, rotated / 2);
    a.out1 = half(out, 0);
    a.out2 = half(out, rotated / 2);
    return a;
  };
  const ApplyRotary of_q = prepare(q, "q", out_q, "out_q"), of_k = prepare(k, "k", out_k, "out_k");
  check_like(k, "k", q, q.scalar_type());
  if (of_q.rows() * of_q.sizes[3] > 0) run(of_q, q);
  if (of_k.rows() * of_k.sizes[3] > 0) run(of_k, k);
}

// A cache [num_blocks, block_size, kv_heads, head_size].
PagedHeads paged(const Tensor& cache, const char* name, const Tensor& qkv) {
  check_like(cache, name, qkv, qkv.scalar_type());
  STD_TORCH_CHECK(cache.dim() == 4, name, " must have 4 dimensions, got ", cache.dim());
  check_inner_stride(cache, name);
  return {cache.data_ptr(), cache.stride(0), cache.stride(1), cache.stride(2)};
}

const void* head_weight(const std::optional<Tensor>& weight, const char* name, const Tensor& qkv, int64_t head_size) {
  if (!weight) return nullptr;
  check_like(*weight, name, qkv, qkv.scalar_type());
  STD_TORCH_CHECK(weight->dim() == 1 && weight->size(0) == head_size, name, " must have the ", head_size,
                  " elements of a head");
  check_inner_stride(*weight, name);
  return weight->data_ptr();
}

void qk_norm_rope_cache(const Tensor& qkv, const std::optional<Tensor>& q_weight, const std::optional<Tensor>& k_weight,
                        const Tensor& positions, const Tensor& cos_sin_cache, const Tensor& key_cache,
                        const Tensor& value_cache, const Tensor& slot_mapping, int64_t num_heads, bool is_neox,
                        double epsilon) {
  QkNormRopeCache f = {};
  f.key_cache = paged(key_cache, "key_cache", qkv);
  f.value_cache = paged(value_cache, "value_cache", qkv);
  check_same_shape(value_cache, "value_cache", key_cache, "key_cache");
  const int64_t kv_heads = key_cache.size(2);
  f.head_size = key_cache.size(3);
  f.block_size = key_cache.size(1);
  f.num_slots = key_cache.size(0) * f.block_size;
  f.rotary = prepare_rotary(positions, qkv, "qkv", f.head_size);
  set_angles(f.rotary, qkv, "qkv", f.head_size, cos_sin_cache, is_neox);
  STD_TORCH_CHECK(positions.dim() == 1, "positions must have 1 dimension, got ", positions.dim());
  STD_TORCH_CHECK(num_heads >= 0, "num_heads must not be negative, got ", num_heads);
  STD_TORCH_CHECK(qkv.dim() == 2 && qkv.size(0) == positions.size(0), "qkv must have 2 dimensions and the ",
                  positions.size(0), " tokens of positions");
  const int64_t width = (num_heads + 2 * kv_heads) * f.head_size;
  STD_TORCH_CHECK(qkv.size(1) == width, "qkv must have size ", width, " in dimension 1: ", num_heads, " heads and twice ",
                  kv_heads, " of ", f.head_size, "; got ", qkv.size(1));
  check_inner_stride(qkv, "qkv");
  char* const data = static_cast<char*>(qkv.data_ptr());
  const int64_t head_bytes = f.head_size * int64_t(qkv.element_size());
  const auto heads = [&](int64_t first, int64_t count) {
    return Heads{data + first * head_bytes, count, qkv.stride(0), f.head_size};
  };
  f.rotary.query = heads(0, num_heads);
  f.rotary.key = heads(num_heads, kv_heads);
  f.value = heads(num_heads + kv_heads, kv_heads);
  f.query_weight = head_weight(q_weight, "q_weight", qkv, f.head_size);
  f.key_weight = head_weight(k_weight, "k_weight", qkv, f.head_size);
  f.epsilon = float(epsilon);
  check_like(slot_mapping, "slot_mapping", qkv, ScalarType::Long);
  STD_TORCH_CHECK(slot_mapping.dim() == 1 && slot_mapping.size(0) <= positions.size(0),
                  "slot_mapping must have 1 dimension and not be longer than the ", positions.size(0), " tokens of qkv");
  check_inner_stride(slot_mapping, "slot_mapping");
  f.num_mapped = slot_mapping.size(0);
  f.slot_mapping = slot_mapping.const_data_ptr<int64_t>();
  run(f, qkv);
}

}  // namespace

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def("rms_norm(Tensor(a!) out, Tensor input, Tensor weight, float epsilon) -> ()");
  ops.def("fused_add_rms_norm(Tensor(a!) input, Tensor(b!) residual, Tensor weight, float epsilon) -> ()");
  ops.def("silu(Tensor(a!) out, Tensor input) -> ()");
  ops.def("gelu(Tensor(a!) out, Tensor input) -> ()");
  ops.def("gelu_tanh(Tensor(a!) out, Tensor input) -> ()");
  ops.def("gelu_fast(Tensor(a!) out, Tensor input) -> ()");
  ops.def("gelu_new(Tensor(a!) out, Tensor input) -> ()");
  ops.def("gelu_quick(Tensor(a!) out, Tensor input) -> ()");
  ops.def("silu_and_mul(Tensor(a!) out, Tensor input) -> ()");
  ops.def("mul_and_silu(Tensor(a!) out, Tensor input) -> ()");
  ops.def("gelu_and_mul(Tensor(a!) out, Tensor input) -> ()");
  ops.def("gelu_tanh_and_mul(Tensor(a!) out, Tensor input) -> ()");
  ops.def("fatrelu_and_mul(Tensor(a!) out, Tensor input, float threshold) -> ()");
  ops.def(
      "rotary_embedding(Tensor positions, Tensor(a!) query, Tensor(b!)? key, int head_size, Tensor "
      "cos_sin_cache, "
      "bool is_neox) -> ()");
  ops.def(
      "apply_rotary(Tensor x1, Tensor x2, Tensor cos, Tensor sin, Tensor(a!) out1, Tensor(b!) out2, bool conj) -> ()");
  ops.def(
      "rotate_halves(Tensor q, Tensor k, Tensor cos, Tensor sin, Tensor(a!) out_q, Tensor(b!) out_k, int unsqueeze_dim) "
      "-> ()");
  ops.def(
      "qk_norm_rope_cache(Tensor(a!) qkv, Tensor? q_weight, Tensor? k_weight, Tensor positions, Tensor cos_sin_cache, "
      "Tensor(b!) key_cache, Tensor(c!) value_cache, Tensor slot_mapping, int num_heads, bool is_neox, float epsilon) "
      "-> ()");
}

#if defined(CPU_KERNEL)
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) {
#elif defined(CUDA_KERNEL)
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) {
#endif
  ops.impl("rms_norm", TORCH_BOX(&rms_norm));
  ops.impl("fused_add_rms_norm", TORCH_BOX(&fused_add_rms_norm));
  ops.impl("silu", TORCH_BOX(&activate<Function::silu>));
  ops.impl("gelu", TORCH_BOX(&activate<Function::gelu>));
  for (const char* name : {"gelu_tanh", "gelu_fast", "gelu_new"}) {  // one function, in three spellings
    ops.impl(name, TORCH_BOX(&activate<Function::gelu_tanh>));
  }
  ops.impl("gelu_quick", TORCH_BOX(&activate<Function::gelu_quick>));
  ops.impl("silu_and_mul", TORCH_BOX(&activate_and_mul<Function::silu>));
  ops.impl("mul_and_silu", TORCH_BOX((&activate_and_mul<Function::silu, true>)));
  ops.impl("gelu_and_mul", TORCH_BOX(&activate_and_mul<Function::gelu>));
  ops.impl("gelu_tanh_and_mul", TORCH_BOX(&activate_and_mul<Function::gelu_tanh>));
  ops.impl("fatrelu_and_mul", TORCH_BOX(&fatrelu_and_mul));
  ops.impl("rotary_embedding", TORCH_BOX(&rotary_embedding));
  ops.impl("apply_rotary", TORCH_BOX(&apply_rotary));
  ops.impl("rotate_halves", TORCH_BOX(&rotate_halves));
  ops.impl("qk_norm_rope_cache", TORCH_BOX(&qk_norm_rope_cache));
}

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
