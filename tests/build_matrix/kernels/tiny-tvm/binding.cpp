#include <tvm/ffi/tvm_ffi.h>

#if !defined(BINDING_FLAG) || defined(KERNEL_FLAG) || !defined(CPU_KERNEL)
#error "flags of the wrong table"
#endif

void double_it(tvm::ffi::TensorView out, tvm::ffi::TensorView x);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(double_it, double_it);
