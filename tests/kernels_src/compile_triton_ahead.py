"""Compile a package's Triton kernels for GPUs that need not be here: FOLDER CAPABILITY... (90 is sm_90).

FOLDER is a built variant. Prints a line for each kernel and capability, with the bytes of its machine code. Each
kernel is compiled as its first configuration, in bfloat16, with all that is optional and without any of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Types of what is no 32-bit integer, and values of what is constant; None: an optional tensor left out.
_POINTERS = "out query key_cache value_cache key value input residual weight x bias cos_sin_cache cache"
_POINTERS += " out_a out_b qkv q_weight k_weight x1 x2 cos sin out1 out2"
_TYPES = dict.fromkeys(_POINTERS.split(), "*bf16")
_TYPES |= dict.fromkeys(["lse", "alibi_slopes", "sinks", "k_scale", "v_scale", "scales"], "*fp32")
_TYPES |= dict.fromkeys(["block_tables", "seq_lens", "query_start_loc", "tree_mask"], "*i32")
_TYPES |= dict.fromkeys(["slot_mapping", "block_mapping", "positions"], "*i64")
_TYPES |= dict.fromkeys(["scale", "softcap", "epsilon", "threshold"], "fp32")
_ATTEND = {
    "HEAD": 64, "HEAD_PADDED": 64, "GROUP": 4, "GROUP_PADDED": 16, "BLOCK_SIZE": 16, "CHUNK": 64, "DECODE": True,
}  # fmt: skip
_BARE = {"CAUSAL": False, "WINDOW": False, "SOFTCAP": False, "WORDS": 0, "tree_mask": None, "CACHE": 0}
_BARE |= dict.fromkeys(["lse", "alibi_slopes", "sinks", "k_scale", "v_scale", "query_start_loc"])
_FULL = {"CAUSAL": True, "WINDOW": True, "SOFTCAP": True, "WORDS": 2}
_EIGHT_BITS = dict.fromkeys(["key_cache", "value_cache", "output"], "*u8")
_WRITE = {"HEAD": 64, "BLOCK_SIZE": 16, "CHUNK": 8, "BLOCK": 512}
_FUSED = {
    "BLOCK_SIZE": 16, "HEAD": 128, "HEAD_PADDED": 128, "NEOX": True, "NORM_Q": True, "NORM_K": True, "BLOCK_H": 8,
}  # fmt: skip
_PLAIN_ROPE = {"NEOX": False, "NORM_Q": False, "NORM_K": False}
_BITS = dict.fromkeys(["key", "value", "key_cache", "value_cache", "cache"], "*i16")
_BLOCKS = [(2, 32, 18, 32), (8, 32, 34, 32), (12, 256, 144, 32), (13, 256, 176, 32), (14, 256, 210, 16)]
_CASES = [
    ("attend_kernel", {}, _ATTEND | _FULL | {"CACHE": 0, "k_scale": None, "v_scale": None}),
    ("attend_kernel", _EIGHT_BITS, _ATTEND | _FULL | {"CACHE": 1}),
    ("attend_kernel", _EIGHT_BITS, _ATTEND | _FULL | {"CACHE": 2}),
    ("attend_kernel", {}, _ATTEND | _BARE),
    ("write_cache_kernel", _BITS, _WRITE | {"CACHE": 0, "k_scale": None, "v_scale": None}),
    ("write_cache_kernel", _EIGHT_BITS, _WRITE | {"CACHE": 1}),
    (
        "merge_states_kernel",
        {"lse_a": "*fp32", "lse_b": "*fp32", "out_lse": "*fp32"},
        {"BLOCK_M": 8, "BLOCK": 64},
    ),
    ("convert_fp8_kernel", _EIGHT_BITS, {"CACHE": 1, "NARROW": True, "BLOCK": 1024}),
    ("convert_fp8_kernel", {"output": "*fp16", "input": "*u8"}, {"CACHE": 2, "NARROW": False, "BLOCK": 1024}),
    ("copy_blocks_kernel", _BITS, {"BLOCK": 1024}),
    ("rms_norm_kernel", {}, {"ADD": True}),
    ("rms_norm_kernel", {}, {"ADD": False}),
    *(("activate_kernel", {}, {"FUNCTION": function, "GATED": function != 1}) for function in range(5)),
    ("rotary_kernel", {}, {"HALF": 64, "HALF_PADDED": 64, "NEOX": True, "BLOCK_H": 8}),
    ("rotary_kernel", {}, {"HALF": 20, "HALF_PADDED": 32, "NEOX": False, "BLOCK_H": 8}),
    ("qk_norm_rope_cache_kernel", {}, _FUSED | {"HALF": 64, "HALF_PADDED": 64, "REST_PADDED": 1}),
    (
        "qk_norm_rope_cache_kernel",
        {},
        _FUSED | {"HALF": 20, "HALF_PADDED": 32, "REST_PADDED": 128} | _PLAIN_ROPE,
    ),
    ("apply_rotary_kernel", {}, {"CONJ": True, "BLOCK": 1024}),
    ("int8_matmul_kernel", {"weight": "*i8"}, {"BLOCK_M": 16}),
    ("int8_matmul_kernel", {"weight": "*i8"}, {"BLOCK_M": 64, "bias": None}),
    ("fp8_matmul_kernel", {"weight": "*u8", "scale_row": "i32"}, {"BLOCK_M": 16, "BLOCKS": 128}),
    ("fp8_matmul_kernel", {"weight": "*u8", "scale_row": "i32"}, {"BLOCK_M": 64, "BLOCKS": 0, "bias": None}),
    ("int4_matmul_kernel", {"weight": "*u8"}, {"BLOCK_M": 16, "GROUP": 32, "BLOCK_J": 16, "zeros": None}),
    ("int4_matmul_kernel", {"weight": "*u8", "zeros": "*u8"}, {"BLOCK_M": 64, "GROUP": 128, "BLOCK_J": 64}),
    *(
        (
            "gguf_matmul_kernel",
            {"weight": "*u8"},
            {"KIND": kind, "VALUES": values, "BYTES": size, "GROUP": group} | rest,
        )
        for kind, values, size, group in _BLOCKS
        for rest in ({"BLOCK_M": 16, "bias": None}, {"BLOCK_M": 64})
    ),
]


def main(folder: Path, capabilities: list[int]) -> None:
    spec = importlib.util.spec_from_file_location(
        "twin", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["twin"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    kernels = vars(importlib.import_module("twin._kernels"))
    left = {name for name in kernels if name.endswith("_kernel")}
    for name, types, constants in _CASES:
        if name in kernels:
            left.discard(name)
            for capability in capabilities:
                size = compile_kernel(kernels[name], _TYPES | types, constants, capability)
                print(f"{name} sm_{capability} {size}", flush=True)
    assert not left, f"add a case for {', '.join(left)}"


def compile_kernel(kernel, types, constants, capability: int) -> int:
    options = {}
    if isinstance(kernel, triton.runtime.autotuner.Autotuner):
        config = kernel.configs[0]
        constants = constants | config.kwargs
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        kernel = kernel.fn
    names = list(inspect.signature(kernel.fn).parameters)
    assert constants.keys() <= set(names), f"{kernel.__name__} lacks one of {sorted(constants)}"
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    source = ASTSource(kernel, signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return len(compiled.asm["cubin"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(argument) for argument in sys.argv[2:]])
