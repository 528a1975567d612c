#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "csrc/relu.h"
#include "registration.h"

void relu_op(torch::stable::Tensor& out, const torch::stable::Tensor& input) {
  STD_TORCH_CHECK(out.numel() == input.numel(), "relu: out has ", out.numel(), " elements, input has ", input.numel());
  void* stream = nullptr;
#ifdef CUDA_KERNEL
  aoti_torch_get_current_cuda_stream(input.get_device_index(), &stream);
#endif
  std::string error = relu(static_cast<float*>(out.mutable_data_ptr()), static_cast<const float*>(input.const_data_ptr()),
                           input.numel(), stream);
  STD_TORCH_CHECK(error.empty(), "relu: ", error);
}

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) { ops.def("relu(Tensor! out, Tensor input) -> ()"); }

#ifdef CUDA_KERNEL
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) { ops.impl("relu", TORCH_BOX(&relu_op)); }
#else
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) { ops.impl("relu", TORCH_BOX(&relu_op)); }
#endif

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
