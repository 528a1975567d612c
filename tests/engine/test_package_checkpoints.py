"""The published matmul package and the engine read the same checkpoint tensors as the same weights.

Neither imports the other; the package's Python files that read checkpoints need no operator: they are imported as they
lie.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gguf
import pytest
import quantized_models as stored
import torch

from engine.quant.checkpoint import Loaded, read_linear
from engine.quant.gguf_blocks import grouped, read_blocks
from engine.quant.packed import PackedWeight, dequantize
from engine.quant.scheme import parse_scheme

FOLDER = Path(__file__).resolve().parents[2] / "kernels_src/quantized-matmul/torch-ext/quantized_matmul"


@pytest.fixture(scope="module")
def package() -> Iterator[Any]:
    """Modules `checkpoints` and `gguf` of the package."""
    parent = ModuleType("package_files")
    parent.__path__ = [str(FOLDER)]
    sys.modules["package_files"] = parent
    names = ("packed", "checkpoints", "gguf")
    yield SimpleNamespace(**{name: importlib.import_module(f"package_files.{name}") for name in names})
    for name in ("package_files", *(f"package_files.{name}" for name in names)):
        del sys.modules[name]


class OneLayer:
    """The tensors of a layer named "layer"."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def has(self, name: str) -> bool:
        return name.removeprefix("layer.") in self._tensors

    def get(self, name: str, shape: tuple[int, ...] | None) -> torch.Tensor:
        return self._tensors[name.removeprefix("layer.")]


def by_engine(tensors: Mapping[str, torch.Tensor], shape: tuple[int, int], **config: Any) -> Loaded:
    given = {"bits": 4, "group_size": stored.GROUP, **config}
    return read_linear(OneLayer(tensors), "layer", shape, parse_scheme(given, "config.json"))


def assert_same(ours: Any, loaded: Loaded) -> None:
    theirs = loaded.weight
    assert isinstance(theirs, PackedWeight)
    assert (ours.shape, ours.format, ours.group_size) == (theirs.shape, theirs.format, theirs.group_size)
    pairs = [(ours.weight, theirs.weight), (ours.scales, theirs.scales), (ours.zeros, theirs.zeros)]
    for mine, other in [*pairs, (ours.permutation, loaded.order)]:
        assert (mine is None) == (other is None)
        assert mine is None or torch.equal(mine, other.to(mine.dtype))


def test_awq_is_read_by_both_as_the_same_weight(package: Any) -> None:
    tensors, _ = stored.awq(torch.randn(40, 96))
    loaded = by_engine(tensors, (40, 96), quant_method="awq")
    assert_same(package.checkpoints.from_awq(**tensors, group_size=stored.GROUP), loaded)


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq_is_read_by_both_as_the_same_weight(
    package: Any, symmetric: bool, act_order: bool, version: str
) -> None:
    shift = int(version == "gptq")
    tensors, _ = stored.gptq(torch.randn(40, 96), 4, symmetric, act_order, shift)
    loaded = by_engine(tensors, (40, 96), quant_method="gptq", checkpoint_format=version, desc_act=act_order)
    assert (loaded.order is not None) == act_order
    ours = package.checkpoints.from_gptq(**tensors, group_size=stored.GROUP, zero_offset=shift)
    assert_same(ours, loaded)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_gguf_blocks_are_read_by_both_and_by_gguf_as_the_same_weight(package: Any, kind: str) -> None:
    ours_number, values, size, _ = package.gguf.KINDS[kind]
    number = gguf.GGMLQuantizationType[kind]
    assert (ours_number, values, size) == (number, *gguf.GGML_QUANT_SIZES[number])
    blocks = torch.randint(0, 256, (12, size), dtype=torch.uint8)
    for at in (0, 2, 208):  # float16 numbers of one kind or another, which have to be finite
        if at + 2 <= size:
            blocks[:, at : at + 2] = torch.randn(12, 1).half().view(torch.uint8)
    data, shape = blocks.view(4, -1), (4, 3 * values)
    ours = package.gguf.dequantize_blocks(package.gguf.from_gguf(data, kind, shape))
    assert torch.equal(ours, torch.from_numpy(gguf.quants.dequantize(data.numpy(), number)))
    # The engine divides a minimum by the scale, which rounds it.
    torch.testing.assert_close(
        dequantize(grouped(read_blocks(data, kind, shape))), ours, rtol=1e-5, atol=1e-4
    )
