"""torch's own further operators, beside what eager code calls: int4 products, flash and flex attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from .case import Call
from .matmul import each

Inputs = Mapping[str, Any]


def nibbles(packed: Any) -> torch.Tensor:
    """The stored values of an int4 weight, uint8 `[N, K]`: 8 more than the multiple of the scale."""
    return torch.stack([packed.weight & 15, packed.weight >> 4], dim=-1).flatten(1)


def _scales_and_zeros(packed: Any, dtype: torch.dtype) -> torch.Tensor:
    scales = packed.scales.t().to(dtype)
    return torch.stack([scales, torch.zeros_like(scales)], dim=-1).contiguous()


def _int4_cpu(inputs: Inputs) -> Call | None:
    x, packed = inputs["x"], inputs["packed"]
    if len(x) > 16:  # of many rows it takes seconds a call on processors without AVX-512
        return None
    values, scales = nibbles(packed).int(), _scales_and_zeros(packed, x.dtype)
    weights = [
        (torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1), scales.clone())
        for _ in range(inputs["copies"])
    ]
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda: each(lambda w: multiply(x, w[0], packed.group_size, w[1]), weights)


def _int4_cuda(inputs: Inputs) -> Call | None:
    x, packed = inputs["x"], inputs["packed"]
    if x.dtype != torch.bfloat16:
        return None
    values, scales = nibbles(packed), _scales_and_zeros(packed, x.dtype)
    stored = (values[:, 0::2] << 4 | values[:, 1::2]).contiguous()
    weights = [
        (torch.ops.aten._convert_weight_to_int4pack(stored, 8), scales.clone())
        for _ in range(inputs["copies"])
    ]
    multiply = torch.ops.aten._weight_int4pack_mm
    return lambda: each(lambda w: multiply(x, w[0], packed.group_size, w[1]), weights)


def _scaled_mm(inputs: Inputs) -> Call | None:
    """Of an x that is rounded beforehand, where the kernel rounds it in its call."""
    x, packed = inputs["x"], inputs["packed"]
    if x.dtype != torch.bfloat16:
        return None
    scales = x.float().abs().amax(1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    rounded = (x.float() / scales).to(torch.float8_e4m3fn)
    weight, weight_scales = packed.weight.t(), packed.scales[None]
    return lambda: torch._scaled_mm(rounded, weight, scales, weight_scales, out_dtype=x.dtype)


def laid_out(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, keys and values `[sequences, heads, tokens, head_size]` of sequences that are equally long."""
    tables = inputs["block_tables"].long()
    query = inputs["query"].unflatten(0, (len(tables), -1)).transpose(1, 2).contiguous()
    keys, values = (
        inputs[name][tables].flatten(1, 2).transpose(1, 2).contiguous()
        for name in ("key_cache", "value_cache")
    )
    return query, keys, values


def _flash(inputs: Inputs) -> Call:
    tensors = laid_out(inputs)

    def run() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = functional.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    return run


def _flex(inputs: Inputs) -> Call:
    """Over keys and values that are laid out already, so without the cost of pages."""
    query, keys, values = laid_out(inputs)
    before = keys.shape[2] - query.shape[2]
    mask = create_block_mask(
        lambda _batch, _head, q, k: q + before >= k,
        None,
        None,
        query.shape[2],
        keys.shape[2],
        device=query.device.type,
    )
    attend = torch.compile(flex_attention)
    return lambda: attend(query, keys, values, block_mask=mask, enable_gqa=True).transpose(1, 2).flatten(0, 1)


INT4_CPU = {"matmul int4": _int4_cpu, "matmul int4, x in 8 bits": _int4_cpu}
INT4_CUDA = {"matmul int4": _int4_cuda}
SCALED_MM = {"matmul fp8, x in 8 bits": _scaled_mm}
FLASH = {"attend (prefill)": _flash}
FLEX = {"attend (prefill)": _flex, "attend (decode)": _flex}
