// The builder's registration macros, with every op registered for the CPU: the CUDA variant of a package then
// takes CPU tensors and runs on the emulator. There is one device, and its stream is null.
#pragma once

#include <Python.h>

#define KHUB_JOIN_(a, b) a##b
#define KHUB_JOIN(a, b) KHUB_JOIN_(a, b)
#define KHUB_STRING_(a) #a
#define KHUB_STRING(a) KHUB_STRING_(a)

#define STABLE_TORCH_LIBRARY_EXPAND(NAME, MODULE) STABLE_TORCH_LIBRARY(NAME, MODULE)
#define STABLE_TORCH_LIBRARY_IMPL_EXPAND(NAME, DEVICE, MODULE) STABLE_TORCH_LIBRARY_IMPL(NAME, CPU, MODULE)

#define REGISTER_EXTENSION(NAME)                                                                            \
  PyMODINIT_FUNC KHUB_JOIN(PyInit_, NAME)() {                                                               \
    static PyModuleDef module = {                                                                           \
        PyModuleDef_HEAD_INIT, KHUB_STRING(NAME), nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr}; \
    return PyModule_Create(&module);                                                                        \
  }

#if defined(CUDA_KERNEL)

#include <torch/csrc/stable/accelerator.h>

namespace torch::stable::accelerator {

struct HostDeviceGuard {
  explicit HostDeviceGuard(int32_t) {}
};

}  // namespace torch::stable::accelerator

#define DeviceGuard HostDeviceGuard

// torch's CPU build does not have it.
extern "C" inline AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

#endif
