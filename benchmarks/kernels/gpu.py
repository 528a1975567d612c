"""Other projects' operators for GPUs, each imported when its first call is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .case import Call
from .matmul import each
from .torch_peers import nibbles

Inputs = Mapping[str, Any]
_WORKSPACE = 128 << 20  # bytes, as FlashInfer's documentation has it


def _pages(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """FlashInfer's view of a block table whose sequences are equally long: offsets, pages, tokens in the last."""
    tables, size = inputs["block_tables"], inputs["key_cache"].shape[1]
    offsets = torch.arange(len(tables) + 1, dtype=torch.int32) * tables.shape[1]
    return offsets, tables.flatten(), (inputs["seq_lens"] - 1) % size + 1


def _flashinfer_decode(inputs: Inputs) -> Call:
    import flashinfer

    query, caches = inputs["query"], (inputs["key_cache"], inputs["value_cache"])
    (heads, head_size), (page, kv_heads) = query.shape[1:], caches[0].shape[1:3]
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(_WORKSPACE, dtype=torch.uint8), "NHD", use_tensor_cores=heads // kv_heads >= 4
    )
    types = {"q_data_type": query.dtype, "kv_data_type": query.dtype, "sm_scale": inputs["scale"]}
    wrapper.plan(*_pages(inputs), heads, kv_heads, head_size, page, **types)
    return lambda: wrapper.run(query, caches)


def _flashinfer_prefill(inputs: Inputs) -> Call:
    import flashinfer

    query, caches = inputs["query"], (inputs["key_cache"], inputs["value_cache"])
    (heads, head_size), (page, kv_heads) = query.shape[1:], caches[0].shape[1:3]
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
        torch.empty(_WORKSPACE, dtype=torch.uint8), "NHD"
    )
    types = {"q_data_type": query.dtype, "kv_data_type": query.dtype, "sm_scale": inputs["scale"]}
    wrapper.plan(
        inputs["query_start_loc"], *_pages(inputs), heads, kv_heads, head_size, page, causal=True, **types
    )
    return lambda: wrapper.run(query, caches)


def _flashinfer_rms_norm(inputs: Inputs) -> Call:
    import flashinfer

    x, weight, out = inputs["x"], inputs["weight"], torch.empty_like(inputs["x"])
    return lambda: flashinfer.norm.rmsnorm(x, weight, inputs["eps"], out=out)


def _liger_rms_norm(inputs: Inputs) -> Call:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return lambda: LigerRMSNormFunction.apply(inputs["x"], inputs["weight"], inputs["eps"])


def _liger_silu_and_mul(inputs: Inputs) -> Call:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    gate, up = (half.contiguous() for half in inputs["x"].chunk(2, dim=-1))
    return lambda: LigerSiLUMulFunction.apply(gate, up)


def _gemlite(inputs: Inputs) -> Call:
    import gemlite

    x, packed = inputs["x"], inputs["packed"]
    kind = {torch.float16: gemlite.DType.FP16, torch.bfloat16: gemlite.DType.BF16}[x.dtype]
    values, scales = nibbles(packed), packed.scales.to(x.dtype)
    layers = []
    for _ in range(inputs["copies"]):
        layer = gemlite.GemLiteLinear(
            W_nbits=4,
            group_size=packed.group_size,
            in_features=packed.shape[1],
            out_features=packed.shape[0],
            input_dtype=kind,
            output_dtype=kind,
        )
        layer.pack(values, scales, torch.full_like(scales, 8), None)
        layers.append(layer)
    return lambda: each(lambda layer: layer(x), layers)


def _torchao(inputs: Inputs) -> Call | None:
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    x, packed = inputs["x"], inputs["packed"]
    if x.dtype != torch.bfloat16:
        return None
    scales = packed.scales.repeat_interleave(packed.group_size, dim=1).float()
    dense = ((nibbles(packed).float() - 8) * scales).to(x.dtype)
    layers = []
    for _ in range(inputs["copies"]):
        layer = torch.nn.Linear(packed.shape[1], packed.shape[0], bias=False, dtype=x.dtype)
        layer.weight = torch.nn.Parameter(dense.clone(), requires_grad=False)
        quantize_(layer, Int4WeightOnlyConfig(group_size=packed.group_size))
        layers.append(layer)
    return lambda: each(lambda layer: layer(x), layers)


FLASHINFER = {
    "attend (decode)": _flashinfer_decode,
    "attend (prefill)": _flashinfer_prefill,
    "rms_norm": _flashinfer_rms_norm,
}
LIGER = {"rms_norm": _liger_rms_norm, "silu_and_mul": _liger_silu_and_mul}
GEMLITE = {"matmul int4": _gemlite}
TORCHAO = {"matmul int4": _torchao}
