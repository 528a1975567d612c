// Every kind of value that crosses the stable ABI, there and back, and every function that it offers on the CPU.
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "registration.h"

using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;
template <class T>
using Maybe = std::optional<T>;

int64_t visited(int64_t count);
int64_t freed = 0;

std::tuple<int64_t, double, bool, std::string, Device, ScalarType> scalars(int64_t i, double f, bool b, std::string s,
                                                                           Device d, ScalarType t) {
  return {-i, -f, !b, s + "!", d, t};
}

std::tuple<std::vector<int64_t>, std::vector<double>, std::vector<Tensor>, std::vector<std::string>> lists(
    std::vector<int64_t> i, std::vector<double> f, std::vector<Tensor> t, std::vector<std::string> s) {
  i.push_back(int64_t(i.size()));
  f.push_back(double(f.size()));
  t.push_back(torch::stable::clone(t.front()));
  s.push_back(std::to_string(s.size()));
  return {i, f, t, s};
}

std::tuple<Maybe<int64_t>, Maybe<std::string>, Maybe<Tensor>, Maybe<std::vector<int64_t>>> optionals(
    Maybe<int64_t> i, Maybe<std::string> s, Maybe<Tensor> t, Maybe<std::vector<int64_t>> l) {
  return {i, s, t, l};
}

// [[0, 2], [1, 3]] of memory that is freed with the tensor.
Tensor strided_blob(Device device) {
  auto* data = new float[4]{0, 1, 2, 3};
  return torch::stable::from_blob(data, {2, 2}, {1, 2}, device, ScalarType::Float,
                                  [&freed = freed](void* blob) { delete[] static_cast<float*>(blob); ++freed; });
}

// Results of the functions of torch/csrc/stable/ops.h for a float32 matrix `x`.
std::vector<Tensor> functions(const Tensor& x) {
  using namespace torch::stable;
  Tensor y = clone(x);
  std::vector<Tensor> out = {
      empty_like(x), narrow(y, 1, 1, 2), pad(x, {1, 2}, "constant", 3.5), amax(x, 1, true), amax(x, {0, 1}),
      transpose(x, 0, 1), contiguous(transpose(x, 0, 1)), flatten(x), unsqueeze(x, 0), squeeze(unsqueeze(x, 0), 0),
      select(x, 0, 1), matmul(x, transpose(x, 0, 1)), reshape(x, {-1}), view(x, {x.size(1), x.size(0)}),
      to(x, ScalarType::Double), sum(x, torch::headeronly::IntHeaderOnlyArrayRef({1}), true), sum(x),
      subtract(x, x, 0.5), full({2, 3}, 7.5, ScalarType::Half), new_empty(x, {4, 0}, ScalarType::Int),
      new_zeros(x, {2, 2}), strided_blob(x.device()), empty({3, 1}, ScalarType::Long), from_blob(y.mutable_data_ptr(), {2}, {1}, x.device(), ScalarType::Float)};
  out[0] = copy_(out[0], x);
  out[out.size() - 2] = zero_(out[out.size() - 2]);
  out.back() = clone(out.back());  // outlives `y`
  return out;
}

std::tuple<bool, bool, int64_t, int64_t, Device, int64_t> facts(const Tensor& x, int64_t count) {
  STD_TORCH_CHECK(x.dim() > 0, "facts: x has no dimension");
  const bool aliased = torch::stable::transpose(x, 0, -1).is_contiguous();
  return {x.is_contiguous(), aliased, x.element_size(), visited(count), Device("cuda:3"), freed};
}

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def("scalars(int i, float f, bool b, str s, Device d, ScalarType t) -> (int, float, bool, str, Device, ScalarType)");
  ops.def("lists(int[] i, float[] f, Tensor[] t, str[] s) -> (int[], float[], Tensor[], str[])");
  ops.def("optionals(int? i, str? s, Tensor? t, int[]? l) -> (int?, str?, Tensor?, int[]?)");
  ops.def("functions(Tensor x) -> Tensor[]");
  ops.def("facts(Tensor x, int count) -> (bool, bool, int, int, Device, int)");
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CompositeExplicitAutograd, ops) {
  ops.impl("scalars", TORCH_BOX(&scalars));
  ops.impl("lists", TORCH_BOX(&lists));
  ops.impl("optionals", TORCH_BOX(&optionals));
  ops.impl("functions", TORCH_BOX(&functions));
  ops.impl("facts", TORCH_BOX(&facts));
}

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
