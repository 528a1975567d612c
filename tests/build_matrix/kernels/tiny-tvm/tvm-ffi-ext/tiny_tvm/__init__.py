import tvm_ffi

from ._ops import jax_add_ffi_target_name_prefix, ops, torch_add_op_namespace_prefix


def double_it(out, x):
    ops.double_it(tvm_ffi.from_dlpack(out), tvm_ffi.from_dlpack(x))
    return out


NAMES = (jax_add_ffi_target_name_prefix("f"), torch_add_op_namespace_prefix("f"))
__all__ = ["NAMES", "double_it"]
