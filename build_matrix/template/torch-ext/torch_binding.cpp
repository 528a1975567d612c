#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "csrc/kernel.h"
#include "registration.h"

using torch::stable::Tensor;

namespace {

void check(const Tensor& tensor, const Tensor& out, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == torch::headeronly::ScalarType::Float, "scale_add: ", name, " must be float32");
  STD_TORCH_CHECK(tensor.is_contiguous(), "scale_add: ", name, " must be contiguous");
  STD_TORCH_CHECK(tensor.numel() == out.numel(), "scale_add: ", name, " has ", tensor.numel(), " elements, out has ",
                  out.numel());
  STD_TORCH_CHECK(tensor.device() == out.device(), "scale_add: ", name, " and out are on different devices");
}

void scale_add_op(Tensor out, const Tensor& x, const Tensor& y, double scale) {
  check(out, out, "out");
  check(x, out, "x");
  check(y, out, "y");
  void* stream = nullptr;
#ifdef CUDA_KERNEL
  const torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(out.get_device_index(), &stream));
#endif
  const char* error = scale_add(static_cast<float*>(out.mutable_data_ptr()), static_cast<const float*>(x.const_data_ptr()),
                                static_cast<const float*>(y.const_data_ptr()), static_cast<float>(scale), out.numel(), stream);
  STD_TORCH_CHECK(error == nullptr, "scale_add: ", error);
}

}  // namespace

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def("scale_add(Tensor! out, Tensor x, Tensor y, float scale) -> ()");
}

#ifdef CUDA_KERNEL
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) { ops.impl("scale_add", TORCH_BOX(&scale_add_op)); }
#else
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) { ops.impl("scale_add", TORCH_BOX(&scale_add_op)); }
#endif

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
