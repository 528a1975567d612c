// The only file that knows torch: checks every argument, then hands raw pointers, sizes and strides to the
// kernel.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "../csrc/cpu/linear_cpu.h"
#include "registration.h"
#include "share.h"

namespace {

using khub::DType;
using khub::Linear;
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

void check_matrix(const Tensor& tensor, const char* name, ScalarType dtype, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must be ", torch::headeronly::toString(dtype),
                  ", got ", torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns, name,
                  " must have shape [", rows, ", ", columns, "]");
  STD_TORCH_CHECK(columns <= 1 || tensor.stride(1) == 1, name,
                  " must be contiguous in its last dimension, got stride ", tensor.stride(1));
}

// Whether the bytes of two matrices, rows and what is between them, share any.
bool overlap(const Tensor& a, const Tensor& b) {
  const auto end = [](const Tensor& t) {
    const int64_t items = (t.size(0) - 1) * t.stride(0) + t.size(1);
    return reinterpret_cast<uintptr_t>(t.data_ptr()) + uintptr_t(items) * t.element_size();
  };
  return reinterpret_cast<uintptr_t>(a.data_ptr()) < end(b) && reinterpret_cast<uintptr_t>(b.data_ptr()) < end(a);
}

// With few rows of x, each is read with each weight.
void run_rows(const Linear& q, bool in_place) {
  khub::cpu::WideRows x = {static_cast<const float*>(q.x), q.x_stride};
  std::vector<float> widened;
  if (q.dtype != DType::f32 || q.m > 1 || in_place) {
    // Each row begins on a cache line, and no two of them in lines of one set, which pages apart they all would.
    x.stride = (q.k + 15) / 16 * 16 + 16;
    widened.resize(size_t(q.m * x.stride + 16));
    float* const to = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(widened.data()) + 63) / 64 * 64);
    const int64_t row_bytes = q.x_stride * (q.dtype == DType::f32 ? 4 : 2);
    for (int64_t m = 0; m < q.m; ++m) {
      khub::cpu::widen(q.dtype, static_cast<const char*>(q.x) + m * row_bytes, to + m * x.stride, q.k);
    }
    x.values = to;
  }
  const int64_t tiles = (q.n + khub::cpu::kTileRows - 1) / khub::cpu::kTileRows;
  const int64_t grain = std::max<int64_t>(1, 65536 / (khub::cpu::kTileRows * q.k));
  khub::share(tiles, grain, [&](int64_t begin, int64_t end) { khub::cpu::linear(q, x, begin, end); });
}

// All rows of x at once where the output takes their place.
void run_blocks(const Linear& q, bool in_place) {
  using namespace khub::cpu;
  const int64_t at_once = in_place ? q.m : std::min(q.m, kRowsAtOnce);
  const std::unique_ptr<float[]> values(new float[size_t((at_once + kStripe - 1) / kStripe * kStripe * q.k)]);
  // Four turns for each thread, of whole panels.
  const int64_t part = q.n / (4 * torch::stable::get_num_threads()) / kPanelWidth * kPanelWidth;
  const int64_t rows = std::clamp<int64_t>(part, kPanelWidth, kBlockRows);
  for (int64_t first = 0; first < q.m; first += at_once) {
    const Stripes x = {first, std::min(at_once, q.m - first), values.get()};
    khub::share((x.rows + kStripe - 1) / kStripe, 4, [&](int64_t begin, int64_t end) { fill_stripes(q, x, begin, end); });
    khub::share(q.n, rows, [&](int64_t begin, int64_t end) { multiply_blocks(q, x, begin, end); });
  }
}

void linear(const Tensor& out, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  Linear q = {};
  q.dtype = dtype_of(x, "x");
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(x.dim() == 2 && weight.dim() == 2, "x and weight must have 2 dimensions, got ", x.dim(),
                  " and ", weight.dim());
  q.m = x.size(0);
  q.n = weight.size(0);
  q.k = x.size(1);
  STD_TORCH_CHECK(q.k > 0, "x must have at least 1 column");
  check_matrix(x, "x", dtype, q.m, q.k);
  check_matrix(weight, "weight", dtype, q.n, q.k);
  check_matrix(out, "out", dtype, q.m, q.n);
  if (bias) {
    STD_TORCH_CHECK(bias->scalar_type() == dtype && bias->dim() == 1 && bias->size(0) == q.n, "bias must be ",
                    torch::headeronly::toString(dtype), " of shape [", q.n, "]");
    STD_TORCH_CHECK(bias->is_contiguous(), "bias must be contiguous");
    q.bias = bias->data_ptr();
  }
  if (q.m == 0 || q.n == 0) return;
  q.weight = weight.data_ptr();
  q.weight_stride = weight.stride(0);
  q.out = out.data_ptr();
  q.out_stride = out.stride(0);
  q.x = x.data_ptr();
  q.x_stride = x.stride(0);
  const bool in_place = overlap(out, x);
  khub::cpu::takes_blocks(q) ? run_blocks(q, in_place) : run_rows(q, in_place);
}

}  // namespace

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def("linear(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) { ops.impl("linear", TORCH_BOX(&linear)); }

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
