"""kernels-community's kernels, compiled from a checkout by our matrix and loaded as local packages."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from build_matrix.build import gate, needed_libraries, toolchain
from build_matrix.build_file import BuildFile
from build_matrix.build_toml import read_build_file
from build_matrix.compile import compile_cell
from build_matrix.matrix import Cell, Matrix, read_matrix
from build_matrix.package import write_variant
from build_matrix.plan import plan
from build_matrix.provenance import Provenance, kernel_id
from build_matrix.toolchain.cache import ToolchainCache
from build_matrix.toolchain.host import find_compiler
from hub_loader import get_local_kernel
from hub_loader.errors import AuditError, KernelHubError

from .case import Call
from .matmul import each
from .peers import Make, Peer
from .torch_peers import nibbles

Inputs = Mapping[str, Any]
_PARTITION = 512  # tokens: what paged_attention_v2 gives to one of its blocks


def community(checkout: Path, device: str, out: Path) -> tuple[Peer, dict[str, str]]:
    """Compile what the checkout has for the device, and say of each package what became of it.

    Args:
        checkout: the folder that holds rmsnorm, rotary and so on.
        device: cpu or cuda.
        out: where the packages go. Compiling is cached where `khub build` caches it.
    """
    makes: dict[str, Make] = {}
    said = {}
    for package, rows in _ROWS.items():
        name = f"kernels-community/{package}"
        try:
            build = read_build_file((checkout / package).resolve())
            cell = _cell(build, read_matrix(), device)
            if cell is None:
                said[name] = f"no {device} build for torch {torch.__version__}: its build.toml has none"
                continue
            folder, audit = _built(build, cell, out.resolve() / package)
            kernel = get_local_kernel(folder, backend=device)
        except KernelHubError as error:
            said[name] = f"could not be built: {error}"
            continue
        makes |= {case: _bound(row, kernel) for case, row in rows.items()}
        said[name] = f"compared: {', '.join(rows)}{audit}"
    return Peer("kernels-community", makes), said


def _bound(row: Callable[[ModuleType, Inputs], Call | None], kernel: ModuleType) -> Make:
    return lambda inputs: row(kernel, inputs)


def _cell(build: BuildFile, matrix: Matrix, device: str) -> Cell | None:
    """The variant for the torch that runs this; one for this torch alone before one of the stable ABI."""
    release = "".join(torch.__version__.split(".")[:2])
    backend = "cpu" if device == "cpu" else f"cu{(torch.version.cuda or '').partition('.')[0]}*"
    cells, _ = plan(build, matrix)
    for framework in (f"torch{release}-*", "torch-stable-*"):
        for cell in cells:
            if fnmatch(str(cell), f"{framework}-{backend}-{platform.machine()}-linux"):
                return cell
    return None


def _built(build: BuildFile, cell: Cell, out: Path) -> tuple[Path, str]:
    """The variant's folder, and what the audit has against it.

    `khub build` packages nothing that the audit refuses, as these libraries which take OpenMP from torch's own
    copy; to be measured on this machine they need no leave.
    """
    cache, compiler, matrix, name = ToolchainCache(), find_compiler(), read_matrix(), kernel_id(build, cell)
    tools = toolchain(cache, compiler, matrix, cell, needed_libraries(build, cell))
    library = compile_cell(build, cell, name, tools, cache.root, None).library
    audit = ""
    try:
        gate(build, cell, name, library, matrix, cache, tools, None)
    except AuditError as error:
        audit = f" (khub build would not package it: {str(error).partition(': ')[2].partition(';')[0]})"
    return write_variant(build, cell, name, library, out, Provenance(None, False)), audit


def _rms_norm(kernel: ModuleType, inputs: Inputs) -> Call:
    return lambda: kernel.apply_rms_norm(inputs["x"], inputs["weight"], inputs["eps"])


def _gate_and_mul(name: str, kernel: ModuleType, inputs: Inputs) -> Call | None:
    """Its CPU build has silu alone."""
    x = inputs["x"]
    if name != "silu_and_mul" and not x.is_cuda:
        return None
    out = x.new_empty(x.shape[0], x.shape[1] // 2)
    return lambda: getattr(kernel, name)(out, x)


def _rotary(kernel: ModuleType, inputs: Inputs) -> Call:
    q, k, cos, sin = (inputs[name] for name in ("q", "k", "cos", "sin"))
    return lambda: kernel.apply_rotary_transformers(q, k, cos, sin)[0]


def _int4(kernel: ModuleType, inputs: Inputs) -> Call | None:
    """It computes in bfloat16. Its weights: of 32 rows by two channels the first 16 rows are the low four bits."""
    x, packed = inputs["x"], inputs["packed"]
    if x.dtype != torch.bfloat16:
        return None
    rows, columns = packed.shape
    blocks = nibbles(packed).view(rows // 32, 32, columns // 2, 2).transpose(1, 2).flatten(2)
    weight = (blocks[..., :32] | blocks[..., 32:] << 4).view(rows, columns // 2)
    scales = packed.scales.to(x.dtype).t().contiguous()
    zeros = torch.full_like(scales, 8, dtype=torch.uint8)
    weights = [(weight.clone(), scales.clone()) for _ in range(inputs["copies"])]
    multiply = kernel.gemm_int4_forward
    return lambda: each(lambda w: multiply(x, w[0], zeros, w[1], packed.group_size), weights)


def _paged_attention(kernel: ModuleType, inputs: Inputs) -> Call:
    """Of the two versions the one that vLLM chose by the same rule."""
    query, tables, lengths = inputs["query"], inputs["block_tables"], inputs["seq_lens"]
    block, kv_heads = inputs["key_cache"].shape[1:3]
    vector = 16 // query.element_size()
    keys = inputs["key_cache"].unflatten(3, (-1, vector)).permute(0, 2, 3, 1, 4).contiguous()
    values = inputs["value_cache"].permute(0, 2, 3, 1).contiguous()
    longest, out = int(lengths.max()), torch.empty_like(query)
    unit = torch.ones(())
    rest = (kv_heads, inputs["scale"], tables, lengths, block, longest, None, "auto", unit, unit)
    parts = -(-longest // _PARTITION)
    if longest <= 8192 and (parts == 1 or query.shape[0] * query.shape[1] > 512):

        def first() -> torch.Tensor:
            kernel.paged_attention_v1(out, query, keys, values, *rest)
            return out

        return first
    sums = torch.empty(*query.shape[:2], parts, dtype=torch.float32)
    largest, partial = torch.empty_like(sums), query.new_empty(*query.shape[:2], parts, query.shape[2])

    def second() -> torch.Tensor:
        kernel.paged_attention_v2(out, sums, largest, partial, query, keys, values, *rest)
        return out

    return second


_ROWS: Mapping[str, Mapping[str, Callable[[ModuleType, Inputs], Call | None]]] = {
    "paged-attention": {"attend (decode)": _paged_attention},
    "rmsnorm": {"rms_norm": _rms_norm},
    "rotary": {"apply_rotary_transformers": _rotary},
    "activation": {name: partial(_gate_and_mul, name) for name in ("silu_and_mul", "gelu_tanh_and_mul")},
    "quantization-gptq": {"matmul int4": _int4},
}
