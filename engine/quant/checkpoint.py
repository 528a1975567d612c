"""Read a quantized linear layer as AWQ, GPTQ, compressed-tensors and fp8 checkpoints store it.

Layouts, with N outputs, K inputs and G groups; eight nibbles (or four bytes) share an int32, the lowest bits first:
    AWQ                 qweight [K, N / 8] with the columns of each eight in the order 0 2 4 6 1 3 5 7;
                        qzeros [G, N / 8] alike; scales [G, N]
    GPTQ                qweight [K / 8, N]; qzeros [G, N / 8], less 1 unless gptq_v2; scales [G, N]; g_idx [K]
    compressed-tensors  weight_packed [N, K / 8], signed plus 8; or weight int8 or float8 [N, K]; weight_scale [N, G],
                        [N, 1], [1] or by blocks; weight_zero_point, in packs along N where the weight is packed
    fp8                 weight float8 [N, K]; weight_scale_inv by blocks, or weight_scale
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from hub_loader.errors import ModelError

from .gguf_blocks import grouped
from .packed import PackedWeight, dequantize, pack_nibbles
from .scheme import Scheme

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Tensors(Protocol):
    """A checkpoint's tensors by name."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""

    def get(self, name: str, shape: tuple[int, ...] | None) -> torch.Tensor:
        """The tensor; ModelError if it is missing, or has another shape than `shape`."""


@dataclass(frozen=True)
class Loaded:
    """A linear layer's weight [N, K], dense or packed; a packed column k multiplies x's column order[k]."""

    weight: torch.Tensor | PackedWeight
    order: torch.Tensor | None = None

    def on(self, device: torch.device) -> Loaded:
        """The weight on a device; itself if that is a CPU."""
        if device.type == "cpu":
            return self
        order = None if self.order is None else self.order.to(device)
        if isinstance(self.weight, torch.Tensor):
            return Loaded(self.weight.to(device), order)
        parts: dict[str, Any] = {
            n: v.to(device) for n, v in vars(self.weight).items() if isinstance(v, torch.Tensor)
        }
        return Loaded(replace(self.weight, **parts), order)


def dense(loaded: Loaded) -> torch.Tensor:
    """The weight [N, K] with its columns in x's order; float32 if it was packed."""
    if isinstance(loaded.weight, torch.Tensor):
        return loaded.weight
    weight = dequantize(grouped(loaded.weight))
    return weight if loaded.order is None else weight[:, loaded.order.argsort()]


def read_linear(tensors: Tensors, module: str, shape: tuple[int, int], scheme: Scheme) -> Loaded:
    """The weight of the layer `module`, which has `shape` [N, K].

    Raises:
        ModelError: a tensor is missing, or does not fit the shape and the scheme.
    """
    if scheme.group_size and shape[1] % scheme.group_size:
        raise ModelError(
            f"{module} has {shape[1]} inputs, no multiple of quantization_config's group_size {scheme.group_size}"
        )
    return _READERS[scheme.layout](tensors, module, shape, scheme)


def _awq(tensors: Tensors, module: str, shape: tuple[int, int], scheme: Scheme) -> Loaded:
    rows, columns = shape
    group = scheme.group_size or columns
    place = torch.tensor(AWQ_ORDER).argsort()

    def read(name: str, length: int) -> torch.Tensor:
        values = unpack(tensors.get(f"{module}.{name}", (length, rows // 8)), 4)
        return values.view(length, -1, 8)[..., place].reshape(length, rows).T.contiguous()

    zeros = read("qzeros", columns // group) if not scheme.symmetric else None
    scales = tensors.get(f"{module}.scales", (columns // group, rows)).T.contiguous()
    packed = pack_nibbles(read("qweight", columns))
    return Loaded(PackedWeight(shape, "int4", group, packed, scales, zeros))


def _gptq(tensors: Tensors, module: str, shape: tuple[int, int], scheme: Scheme) -> Loaded:
    rows, columns = shape
    bits = int(scheme.format[3:])
    group, per = scheme.group_size or columns, 32 // bits
    groups = columns // group
    stored = tensors.get(f"{module}.qweight", (columns // per, rows))
    values = unpack(stored.T.contiguous(), bits)  # [N, K]
    zeros = unpack(tensors.get(f"{module}.qzeros", (groups, rows // per)), bits).T.contiguous()
    zeros = zeros + scheme.zero_shift & 2**bits - 1
    scales = tensors.get(f"{module}.scales", (groups, rows)).T.contiguous()
    order = None
    if tensors.has(f"{module}.g_idx"):
        order = _order(tensors.get(f"{module}.g_idx", (columns,)), group, module)
        values = values if order is None else values[:, order]
    if bits == 4:
        middle = bool((zeros == 8).all())  # what has no zero point of its own is the cheaper format
        return Loaded(
            PackedWeight(shape, "int4", group, pack_nibbles(values), scales, None if middle else zeros), order
        )
    return Loaded(_int8(shape, group, values, scales, zeros), order)


def _order(group_of: torch.Tensor, group: int, module: str) -> torch.Tensor | None:
    """Columns in the order of their groups; None if they are already. Each group has to be whole."""
    order = group_of.argsort(stable=True)
    expected = torch.arange(len(group_of)) // group
    if not torch.equal(group_of[order].long(), expected):
        raise ModelError(f"{module}.g_idx does not give each group {group} columns: fetch the model again")
    return None if torch.equal(order, torch.arange(len(order))) else order


def _int8(
    shape: tuple[int, int], group: int, values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> PackedWeight:
    """Bytes with a zero point as signed ones; per channel and symmetric is what kernels multiply."""
    signed, offset = (values.to(torch.int16) - 128).to(torch.int8), zeros.to(torch.float32) - 128
    scales = scales.to(torch.float32)
    if group == shape[1]:
        scales = scales.reshape(shape[0])
    return PackedWeight(shape, "int8", group, signed, scales, offset if bool(offset.any()) else None)


def _packed(tensors: Tensors, module: str, shape: tuple[int, int], scheme: Scheme) -> Loaded:
    rows, columns = shape
    group = scheme.group_size or columns
    groups = columns // group
    stored = tensors.get(f"{module}.weight_packed", (rows, -(-columns // 8)))
    values = unpack(stored, 4)[:, :columns]
    scales = tensors.get(f"{module}.weight_scale", (rows, groups))
    zeros = order = None
    if not scheme.symmetric:
        packed = tensors.get(f"{module}.weight_zero_point", (-(-rows // 8), groups))
        zeros = unpack(packed.T.contiguous(), 4)[:, :rows].T.contiguous()
    if tensors.has(f"{module}.weight_g_idx"):
        group_of = tensors.get(f"{module}.weight_g_idx", (columns,))
        if not bool((group_of == -1).all()):
            order = _order(group_of, group, module)
            values = values if order is None else values[:, order]
    return Loaded(PackedWeight(shape, "int4", group, pack_nibbles(values), scales.contiguous(), zeros), order)


def _bytes(tensors: Tensors, module: str, shape: tuple[int, int], scheme: Scheme) -> Loaded:
    rows, columns = shape
    weight = tensors.get(f"{module}.weight", shape)
    expected = torch.float8_e4m3fn if scheme.format == "fp8" else torch.int8
    if weight.dtype != expected:
        raise ModelError(f"{module}.weight is {weight.dtype}, quantization_config implies {expected}")
    name = f"{module}.weight_scale"
    name = name if tensors.has(name) else f"{module}.weight_scale_inv"
    if scheme.blocks:
        return Loaded(_blocked(tensors, name, weight, scheme.blocks))
    group = scheme.group_size or columns
    scales = tensors.get(name, None).to(torch.float32)
    if scales.numel() not in (1, rows * (columns // group)):
        raise ModelError(
            f"{name} is {list(scales.shape)}, quantization_config implies {[rows, columns // group]}"
        )
    scales = scales.reshape(1).expand(rows).contiguous() if scales.numel() == 1 else scales.reshape(rows, -1)
    scales = scales.reshape(rows) if group == columns else scales
    zeros = None
    if not scheme.symmetric:
        name = f"{module}.weight_zero_point"
        zeros = tensors.get(name, None).to(torch.float32)
        if zeros.numel() not in (1, rows * (columns // group)):
            raise ModelError(
                f"{name} is {list(zeros.shape)}, quantization_config implies {[rows, columns // group]}"
            )
        zeros = zeros.reshape(-1, 1 if zeros.numel() == 1 else columns // group).expand(
            rows, columns // group
        )
    return Loaded(PackedWeight(shape, scheme.format, group, weight, scales, zeros))


def _blocked(tensors: Tensors, name: str, weight: torch.Tensor, blocks: tuple[int, int]) -> PackedWeight:
    """Scales by blocks of rows and columns become scales by row: groups of columns as wide as a block."""
    rows, columns = weight.shape
    shape = (-(-rows // blocks[0]), -(-columns // blocks[1]))
    scales = tensors.get(name, shape).to(torch.float32)
    if columns % blocks[1]:
        raise ModelError(f"{name}: {columns} columns are no multiple of the block's {blocks[1]}")
    scales = scales.repeat_interleave(blocks[0], dim=0)[:rows].contiguous()
    if blocks[1] == columns:
        scales = scales.reshape(rows)
    return PackedWeight((rows, columns), "fp8", blocks[1], weight, scales)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [R, C] -> uint8 [R, C * 32 / bits], the lowest bits of each first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    values: torch.Tensor = packed[..., None] >> shifts & 2**bits - 1
    return values.to(torch.uint8).flatten(1)


_READERS: dict[str, Callable[[Tensors, str, tuple[int, int], Scheme], Loaded]] = {
    "awq": _awq,
    "gptq": _gptq,
    "pack-quantized": _packed,
    "int-quantized": _bytes,
    "float-quantized": _bytes,
    "fp8": _bytes,
}
