// What a kernel's binding includes to register itself; given by the builder, so kernels carry no copy.
//
//   STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) { ops.def("relu(Tensor! out, Tensor x) -> ()"); }
//   STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) { ops.impl("relu", TORCH_BOX(&relu)); }
//   REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
//
// The macro names are those of the Hub's kernel-builder, so its kernels compile unchanged.
#pragma once

#include <cstddef>

// Torch's macros paste their NAME; these expand it first, so that NAME may itself be a macro.
#define TORCH_LIBRARY_EXPAND(NAME, MODULE) TORCH_LIBRARY(NAME, MODULE)
#define TORCH_LIBRARY_IMPL_EXPAND(NAME, DEVICE, MODULE) TORCH_LIBRARY_IMPL(NAME, DEVICE, MODULE)
#define STABLE_TORCH_LIBRARY_EXPAND(NAME, MODULE) STABLE_TORCH_LIBRARY(NAME, MODULE)
#define STABLE_TORCH_LIBRARY_IMPL_EXPAND(NAME, DEVICE, MODULE) STABLE_TORCH_LIBRARY_IMPL(NAME, DEVICE, MODULE)

// An empty Python module, so that `import` loads the library and with it the operators. Its definition
// follows CPython's stable ABI (PEP 384, PEP 489) word for word instead of including Python.h: no Python
// headers are needed to compile, and the symbol is weak, so none is needed to link.
namespace kernel_hub {
struct PythonModuleDef {
  std::size_t base[5];  // ob_refcnt, ob_type, m_init, m_index, m_copy: filled in by PyModuleDef_Init
  const char* name;
  const char* doc;
  std::ptrdiff_t size;
  const void* methods;
  const void* slots;
  const void* hooks[3];  // m_traverse, m_clear, m_free
};
struct PythonModuleSlot {
  int slot;
  void* value;
};
extern "C" void* kernel_hub_module_def_init(void* def) __asm__("PyModuleDef_Init") __attribute__((weak));
}  // namespace kernel_hub

#define KERNEL_HUB_CONCAT_(A, B) A##B
#define KERNEL_HUB_CONCAT(A, B) KERNEL_HUB_CONCAT_(A, B)
#define KERNEL_HUB_STRING_(A) #A
#define KERNEL_HUB_STRING(A) KERNEL_HUB_STRING_(A)

#define REGISTER_EXTENSION(NAME)                                                                        \
  extern "C" __attribute__((visibility("default"))) void* KERNEL_HUB_CONCAT(PyInit_, NAME)() {          \
    static kernel_hub::PythonModuleSlot slots[] = {{0, nullptr}};                                       \
    static kernel_hub::PythonModuleDef def = {                                                          \
        {}, KERNEL_HUB_STRING(NAME), nullptr, 0, nullptr, slots, {nullptr, nullptr, nullptr}};          \
    return kernel_hub::kernel_hub_module_def_init(&def);                                                \
  }
