// The only file that knows torch: checks every argument, then hands raw pointers, sizes and strides to the
// kernels.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "registration.h"

#if defined(CPU_KERNEL)
#include "../csrc/cpu/blocks.h"
#include "../csrc/cpu/fp8_cpu.h"
#include "../csrc/cpu/gguf_cpu.h"
#include "../csrc/cpu/matmul_cpu.h"
#include "share.h"
#elif defined(CUDA_KERNEL)
#include "../csrc/cuda/gguf_cuda.h"
#include "../csrc/cuda/matmul_cuda.h"
#endif

namespace {

using khub::BlockType;
using khub::DType;
using khub::GgufMatmul;
using khub::QuantizedMatmul;
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

void check_dtype(const Tensor& tensor, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must be ", torch::headeronly::toString(dtype),
                  ", got ", torch::headeronly::toString(tensor.scalar_type()));
}

// [rows], or [rows, columns] where columns is not negative.
void check_shape(const Tensor& tensor, const char* name, const Tensor& x, int64_t rows, int64_t columns) {
  const int64_t dims = columns < 0 ? 1 : 2;
  STD_TORCH_CHECK(tensor.device() == x.device(), name, " must be on the device of the first argument");
  STD_TORCH_CHECK(tensor.dim() == dims, name, " must have ", dims, " dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.size(0) == rows, name, " must have size ", rows, " in dimension 0, got ",
                  tensor.size(0));
  STD_TORCH_CHECK(dims == 1 || tensor.size(1) == columns, name, " must have size ", columns,
                  " in dimension 1, got ", tensor.size(dims - 1));
}

void check_inner_stride(const Tensor& tensor, const char* name) {
  const int64_t last = tensor.dim() - 1;
  STD_TORCH_CHECK(tensor.size(last) <= 1 || tensor.stride(last) == 1, name,
                  " must be contiguous in its last dimension, got stride ", tensor.stride(last));
}

void check_contiguous(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

#if defined(CPU_KERNEL)

using khub::share;

void run_blocks(const QuantizedMatmul& q) {
  using namespace khub::cpu;
  const int64_t at_once = std::min(q.m, kRowsAtOnce);
  std::vector<float> values(size_t((at_once + kStripe - 1) / kStripe * kStripe * q.k));
  // Four turns for each thread, of whole panels.
  const int64_t part = q.n / (4 * torch::stable::get_num_threads()) / kPanelWidth * kPanelWidth;
  const int64_t rows = std::clamp<int64_t>(part, kPanelWidth, kBlockRows);
  for (int64_t first = 0; first < q.m; first += kRowsAtOnce) {
    const Stripes x = {first, std::min(kRowsAtOnce, q.m - first), values.data()};
    share((x.rows + kStripe - 1) / kStripe, 4, [&](int64_t begin, int64_t end) { fill_stripes(q, x, begin, end); });
    share(q.n, rows, [&](int64_t begin, int64_t end) { multiply_blocks(q, x, begin, end); });
  }
}

void run_fp8(const QuantizedMatmul& q) {
  using namespace khub::cpu;
  const int64_t at_once = std::min(q.m, kRowsAtOnce), width = (q.k + 7) / 8 * 8;
  std::vector<float> values(size_t(at_once * width));
  for (int64_t first = 0; first < q.m; first += at_once) {
    const WideRows x = {first, std::min(at_once, q.m - first), width, values.data()};
    torch::stable::parallel_for(0, x.rows, std::max<int64_t>(1, 65536 / q.k), [&](int64_t begin, int64_t end) {
      widen_x(q, x, begin, end);
    });
    const int64_t grain = std::max<int64_t>(1, 65536 / (kFp8Tile * q.k)) * kFp8Tile;
    share(q.n, grain, [&](int64_t begin, int64_t end) { multiply_fp8(q, x, begin, end); });
  }
}

void run(const QuantizedMatmul& q, const Tensor&) {
  if (q.m == 0 || q.n == 0) return;
  if (q.e4m3) return run_fp8(q);
  if (khub::cpu::takes_blocks(q)) return run_blocks(q);
  khub::cpu::Digits digits = khub::cpu::make_digits(q);
  torch::stable::parallel_for(0, q.m, std::max<int64_t>(1, 65536 / q.k), [&](int64_t begin, int64_t end) {
    khub::cpu::fill_digits(q, digits, begin, end);
  });
  const int64_t tiles = (q.n + khub::cpu::kTileRows - 1) / khub::cpu::kTileRows;
  const int64_t grain = std::max<int64_t>(1, 65536 / (khub::cpu::kTileRows * q.k));
  khub::share_with(tiles, grain, [&] {
    return [&, own = khub::cpu::Workspace(digits)](int64_t begin, int64_t end) {
      khub::cpu::matmul(q, digits, own, begin, end);
    };
  });
}

void run(const GgufMatmul& q, const Tensor&) {
  using namespace khub::cpu;
  if (q.m == 0 || q.n == 0) return;
  const bool widened = q.dtype != DType::f32;
  const int64_t at_once = std::min(q.m, kRowsAtOnce);
  std::vector<float> values(widened ? size_t(at_once * q.k) : 0);
  for (int64_t first = 0; first < q.m; first += at_once) {
    FloatRows x = {first, std::min(at_once, q.m - first), values.data(), q.k};
    if (widened) {
      torch::stable::parallel_for(0, x.rows, std::max<int64_t>(1, 65536 / q.k), [&](int64_t begin, int64_t end) {
        widen_rows(q, first, begin, end, values.data());
      });
    } else {
      x.values = static_cast<const float*>(q.x) + first * q.x_stride;
      x.stride = q.x_stride;
    }
    const int64_t grain = std::max<int64_t>(1, 65536 / (kGgufTile * q.k)) * kGgufTile;
    share(q.n, grain, [&](int64_t begin, int64_t end) { multiply_gguf(q, x, begin, end); });
  }
}

#elif defined(CUDA_KERNEL)

template <class Launch>
void on_stream(const Tensor& x, const Launch& launch) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const char* error = launch(stream);
  STD_TORCH_CHECK(error == nullptr, "the CUDA kernel could not be launched: ", error);
}

void run(const QuantizedMatmul& q, const Tensor& x) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());  // whose kind decides what is run
  if (!khub::cuda::fits_mma(q)) {
    on_stream(x, [&](void* stream) { return khub::cuda::matmul(q, stream); });
    return;
  }
  // From the allocator of torch, which a CUDA graph captures too; whoever gets it next is behind us on the stream.
  const Tensor workspace = torch::stable::new_empty(x, {khub::cuda::matmul_mma_floats(q)}, ScalarType::Float);
  on_stream(x, [&](void* stream) {
    return khub::cuda::matmul_mma(q, workspace.mutable_data_ptr<float>(), stream);
  });
}

void run(const GgufMatmul& q, const Tensor& x) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  on_stream(x, [&](void* stream) { return khub::cuda::matmul(q, stream); });
}

#endif

// Everything but the weights.
template <class Product = QuantizedMatmul>
Product prepare(const Tensor& out, const Tensor& x, int64_t n, const std::optional<Tensor>& bias) {
  Product q = {};
  q.dtype = dtype_of(x, "x");
  STD_TORCH_CHECK(x.dim() == 2, "x must have 2 dimensions, got ", x.dim());
  check_inner_stride(x, "x");
  q.m = x.size(0);
  q.n = n;
  q.k = x.size(1);
  STD_TORCH_CHECK(q.k > 0, "x must have at least 1 column");
  q.x = x.data_ptr();
  q.x_stride = x.stride(0);
  check_dtype(out, "out", x.scalar_type());
  check_shape(out, "out", x, q.m, q.n);
  check_inner_stride(out, "out");
  q.out = out.data_ptr();
  q.out_stride = out.stride(0);
  if (bias) {
    check_dtype(*bias, "bias", x.scalar_type());
    check_shape(*bias, "bias", x, q.n, -1);
    check_contiguous(*bias, "bias");
    q.bias = bias->data_ptr();
  }
  return q;
}

void int8_matmul(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& scales,
                 const std::optional<Tensor>& bias, bool int8_activations) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight must have 2 dimensions, got ", weight.dim());
  QuantizedMatmul q = prepare(out, x, weight.size(0), bias);
  check_dtype(weight, "weight", ScalarType::Char);
  check_shape(weight, "weight", x, q.n, q.k);
  check_contiguous(weight, "weight");
  check_dtype(scales, "scales", ScalarType::Float);
  check_shape(scales, "scales", x, q.n, -1);
  check_contiguous(scales, "scales");
  q.bits = 8;
  q.row_bytes = q.k;
  q.weight = static_cast<const uint8_t*>(weight.data_ptr());
  q.scales = scales.data_ptr();
  q.scale_dtype = DType::f32;
  q.scale_rows = 1;
  q.group_size = q.k;
  q.groups = 1;
  q.coarse = int8_activations;
  run(q, x);
}

void fp8_matmul(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& scales,
                const std::optional<Tensor>& bias, bool fp8_activations) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight must have 2 dimensions, got ", weight.dim());
  QuantizedMatmul q = prepare(out, x, weight.size(0), bias);
  check_dtype(weight, "weight", ScalarType::Float8_e4m3fn);
  check_shape(weight, "weight", x, q.n, q.k);
  check_contiguous(weight, "weight");
  check_dtype(scales, "scales", ScalarType::Float);
  STD_TORCH_CHECK(scales.dim() == 1 || scales.dim() == 2, "scales must have 1 dimension, a scale for each channel, or "
                  "2, one for each block of 128 x 128; got ", scales.dim());
  const bool blocks = scales.dim() == 2;
  q.scale_rows = blocks ? 128 : 1;
  q.group_size = blocks ? 128 : q.k;
  q.groups = (q.k + q.group_size - 1) / q.group_size;
  check_shape(scales, "scales", x, (q.n + q.scale_rows - 1) / q.scale_rows, blocks ? q.groups : -1);
  check_contiguous(scales, "scales");
  q.bits = 8;
  q.e4m3 = true;
  q.row_bytes = q.k;
  q.weight = static_cast<const uint8_t*>(weight.data_ptr());
  q.scales = scales.data_ptr();
  q.scale_dtype = DType::f32;
  q.coarse = fp8_activations;
  run(q, x);
}

// An int4 product but for its weight, scales and zero points.
QuantizedMatmul prepare_int4(const Tensor& out, const Tensor& x, int64_t n, const std::optional<Tensor>& bias,
                             int64_t group_size, bool int8_activations) {
  QuantizedMatmul q = prepare(out, x, n, bias);
  STD_TORCH_CHECK(group_size == q.k || (group_size > 0 && group_size % 32 == 0 && 512 % group_size == 0 &&
                                        q.k % group_size == 0),
                  "group_size must be 32 to 512 in powers of two and divide the ", q.k,
                  " columns of x, or be their ", "number; got ", group_size);
  q.scale_rows = 1;
  q.group_size = group_size;
  q.groups = q.k / group_size;
  q.coarse = int8_activations;
  q.bits = 4;
  q.row_bytes = (q.k + 1) / 2;
  return q;
}

void int4_matmul(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& scales,
                 const std::optional<Tensor>& zeros, const std::optional<Tensor>& bias, int64_t group_size,
                 bool int8_activations) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight must have 2 dimensions, got ", weight.dim());
  QuantizedMatmul q = prepare_int4(out, x, weight.size(0), bias, group_size, int8_activations);
  check_dtype(weight, "weight", ScalarType::Byte);
  check_shape(weight, "weight", x, q.n, q.row_bytes);
  check_contiguous(weight, "weight");
  q.scale_dtype = dtype_of(scales, "scales");
  check_shape(scales, "scales", x, q.n, q.groups);
  check_contiguous(scales, "scales");
  if (zeros) {
    check_dtype(*zeros, "zeros", ScalarType::Byte);
    check_shape(*zeros, "zeros", x, q.n, q.groups);
    check_contiguous(*zeros, "zeros");
    q.zeros = static_cast<const uint8_t*>(zeros->data_ptr());
  }
  q.weight = static_cast<const uint8_t*>(weight.data_ptr());
  q.scales = scales.data_ptr();
  run(q, x);
}

#if defined(CPU_KERNEL)

// [panels, count, last]
void check_panels(const Tensor& tensor, const char* name, int64_t panels, int64_t count, int64_t last) {
  STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == panels && tensor.size(1) == count && tensor.size(2) == last,
                  name, " must be [", panels, ", ", count, ", ", last, "], panels of eight rows");
  check_contiguous(tensor, name);
}

// The same product of weights that lie in panels of eight rows.
void int4_panels_matmul(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& scales,
                        const std::optional<Tensor>& zeros, const std::optional<Tensor>& bias, int64_t group_size,
                        bool int8_activations) {
  STD_TORCH_CHECK(out.dim() == 2, "out must have 2 dimensions, got ", out.dim());
  QuantizedMatmul q = prepare_int4(out, x, out.size(1), bias, group_size, int8_activations);
  STD_TORCH_CHECK(q.k % 64 == 0 && group_size % 32 == 0, "x must have a multiple of 64 columns, and group_size be one of ",
                  "32, for weights in panels; got ", q.k, " and ", group_size);
  const int64_t panels = (q.n + 7) / 8;
  check_dtype(weight, "weight", ScalarType::Byte);
  check_panels(weight, "weight", panels, q.k / 8, 32);
  q.scale_dtype = dtype_of(scales, "scales");
  check_panels(scales, "scales", panels, q.groups, 8);
  if (zeros) {
    check_dtype(*zeros, "zeros", ScalarType::Byte);
    check_panels(*zeros, "zeros", panels, q.groups, 8);
    q.zeros = static_cast<const uint8_t*>(zeros->data_ptr());
  }
  q.panels = true;
  q.weight = static_cast<const uint8_t*>(weight.data_ptr());
  q.scales = scales.data_ptr();
  run(q, x);
}

#endif

template <BlockType T>
void check_blocks(const Tensor& weight, const Tensor& x, GgufMatmul* q) {
  using Block = khub::Block<T>;
  STD_TORCH_CHECK(q->k % (Block::kGroups * 32) == 0, "x must have a multiple of the ", Block::kGroups * 32,
                  " values of a block as columns, got ", q->k);
  q->row_bytes = q->k / (Block::kGroups * 32) * Block::kBytes;
  check_shape(weight, "weight", x, q->n, q->row_bytes);
}

void gguf_matmul(const Tensor& out, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                 int64_t block_type) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight must have 2 dimensions, got ", weight.dim());
  GgufMatmul q = prepare<GgufMatmul>(out, x, weight.size(0), bias);
  check_dtype(weight, "weight", ScalarType::Byte);
  q.type = BlockType(block_type);
  switch (q.type) {
    case BlockType::q4_0: check_blocks<BlockType::q4_0>(weight, x, &q); break;
    case BlockType::q8_0: check_blocks<BlockType::q8_0>(weight, x, &q); break;
    case BlockType::q4_k: check_blocks<BlockType::q4_k>(weight, x, &q); break;
    case BlockType::q5_k: check_blocks<BlockType::q5_k>(weight, x, &q); break;
    case BlockType::q6_k: check_blocks<BlockType::q6_k>(weight, x, &q); break;
    default:
      STD_TORCH_CHECK(false, "block_type must be ggml's 2 (Q4_0), 8 (Q8_0), 12 (Q4_K), 13 (Q5_K) or 14 (Q6_K), got ",
                      block_type);
  }
  check_contiguous(weight, "weight");
  q.weight = static_cast<const uint8_t*>(weight.data_ptr());
  run(q, x);
}

}  // namespace

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def(
      "int8_matmul(Tensor(a!) out, Tensor x, Tensor weight, Tensor scales, Tensor? bias, bool int8_activations) -> ()");
  ops.def(
      "int4_matmul(Tensor(a!) out, Tensor x, Tensor weight, Tensor scales, Tensor? zeros, Tensor? bias, "
      "int group_size, bool int8_activations) -> ()");
  ops.def(
      "fp8_matmul(Tensor(a!) out, Tensor x, Tensor weight, Tensor scales, Tensor? bias, bool fp8_activations) -> ()");
#if defined(CPU_KERNEL)
  ops.def(
      "int4_panels_matmul(Tensor(a!) out, Tensor x, Tensor weight, Tensor scales, Tensor? zeros, Tensor? bias, "
      "int group_size, bool int8_activations) -> ()");
#endif
  ops.def("gguf_matmul(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias, int block_type) -> ()");
}

#if defined(CPU_KERNEL)
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) {
  ops.impl("int4_panels_matmul", TORCH_BOX(&int4_panels_matmul));
#elif defined(CUDA_KERNEL)
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) {
#endif
  ops.impl("int8_matmul", TORCH_BOX(&int8_matmul));
  ops.impl("int4_matmul", TORCH_BOX(&int4_matmul));
  ops.impl("fp8_matmul", TORCH_BOX(&fp8_matmul));
  ops.impl("gguf_matmul", TORCH_BOX(&gguf_matmul));
}

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
