"""What a matmul kernel is asked before it serves: weights as torch packs them, and some of the checkpoint's own.

Those have what an invented weight may lack: its groups, zero points, dtypes of scales and orders of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .. import torch_ops
from ..config import ModelConfig
from ..kernels import Kernels
from ..linear import Linear, group_size, serves
from ..shapes import Pair, Shapes
from .checkpoint import Loaded, dense
from .packed import PackedWeight

if TYPE_CHECKING:
    from ..weights import Checkpoint

ROWS = 48  # of each weight: enough for a kernel's tile and a rest
INT4_GROUP = 32
# Half a step of each format, relative to the largest weight, and a little more.
ROUNDING = {"int4": 0.6 / 7, "int8": 0.6 / 127, "fp8": 0.6 / 8}


def samples(config: ModelConfig, weights: Checkpoint) -> list[Loaded]:
    """The packed ones of some linear layers of a checkpoint, the first ROWS rows of each.

    Raises:
        ModelError: a tensor is missing, or not as the model's settings say.
    """
    query = config.num_heads * config.head_dim
    shapes = {
        "self_attn.q_proj": (query, config.hidden_size),
        "self_attn.o_proj": (config.hidden_size, query),
    }
    if config.experts is None:
        shapes["mlp.down_proj"] = (config.hidden_size, config.intermediate_size)
    found = []
    for layer in sorted({0, config.num_layers - 1}):
        for name, shape in shapes.items():
            loaded = weights.linear(f"model.layers.{layer}.{name}", shape)
            if isinstance(loaded.weight, PackedWeight):
                found.append(replace(loaded, weight=_first(loaded.weight, ROWS)))
    return found


def _first(packed: PackedWeight, rows: int) -> PackedWeight:
    """A weight's first rows, in memory of their own: what is not needed of the whole can go."""
    rows = min(rows, packed.shape[0])
    return replace(
        packed,
        shape=(rows, packed.shape[1]),
        weight=packed.weight[:rows].clone(),
        scales=None if packed.scales is None else packed.scales[:rows].clone(),
        zeros=None if packed.zeros is None else packed.zeros[:rows].clone(),
    )


def matmul_pairs(kernels: Kernels, shapes: Shapes, random_of: Callable[..., torch.Tensor]) -> Iterator[Pair]:
    """What slot matmul gives, and what it should give."""
    for format in sorted(shapes.quantized & kernels.formats & ROUNDING.keys()):
        yield from _invented(kernels, shapes, random_of, format)
    for loaded in (each.on(torch.device(shapes.device)) for each in shapes.samples()):
        packed = loaded.weight
        if not isinstance(packed, PackedWeight) or not serves(kernels, packed):
            continue
        x, bias = random_of(5, packed.shape[1]), random_of(packed.shape[0])
        own = Linear(
            kernels.matmul, kernels.prepack(kernels.PackedWeight(**vars(packed))), bias, loaded.order
        )
        expected = x.double() @ dense(loaded).double().T + bias.double()
        yield f"matmul of the checkpoint's {_kind(loaded, packed)}", own(x), expected, 0


def _kind(loaded: Loaded, packed: PackedWeight) -> str:
    ordered = ", columns in another order" if loaded.order is not None else ""
    zeros = "" if packed.zeros is None else ", zero points"
    return f"{packed.kind or packed.format} in groups of {packed.group_size}{zeros}{ordered}"


def _invented(
    kernels: Kernels, shapes: Shapes, random_of: Callable[..., torch.Tensor], format: str
) -> Iterator[Pair]:
    """Weights that torch packed, so that a kernel's own `quantize` cannot agree with itself alone."""
    columns = 256
    sizes = [INT4_GROUP]
    if format == "int4":
        widths = [width for width in (shapes.hidden, shapes.inner) if width % INT4_GROUP == 0]
        sizes = sorted({INT4_GROUP, *map(group_size, widths)})
    for size in sizes:
        groups: dict[str, Any] = {"group_size": size} if format == "int4" else {}
        weight = random_of(ROWS, columns)
        ours = torch_ops.quantize(weight, format, **groups)
        x, bias = random_of(5, columns), random_of(ROWS)
        expected = x.double() @ torch_ops.dequantize(ours).double().T + bias.double()
        given = kernels.PackedWeight(**vars(ours))
        yield "matmul", kernels.matmul(x, given, bias=bias), expected, 0
        prepacked = kernels.prepack(given)
        if prepacked is not given:
            yield "matmul of what prepack made", kernels.matmul(x, prepacked, bias=bias), expected, 0
        if format == "int4" and kernels.takes_int8_activations:
            whole = (random_of(5, columns) * 40).round().clamp(-127, 127)
            whole[:, :: min(size, 32)] = 127  # the scale of each group is 1, so that 8 bits hold x
            expected = whole.double() @ torch_ops.dequantize(ours).double().T + bias.double()
            actual = kernels.matmul(whole, prepacked, bias=bias, int8_activations=True)
            yield "matmul with int8_activations", actual, expected, 0
        identity = torch.eye(columns, dtype=shapes.dtype, device=shapes.device)
        kept = kernels.matmul(identity, kernels.quantize(weight, format, **groups))
        yield "quantize", kept, weight.double().T, ROUNDING[format]
