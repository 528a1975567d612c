"""A checkpoint's tensors, memory-mapped: a tensor's pages are read when it is used, not before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from hub_loader.errors import ModelError

from .config import read_json
from .quant.checkpoint import Loaded, read_linear
from .quant.gguf_file import open_gguf
from .quant.scheme import Scheme

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DENSE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Checkpoint(Protocol):
    """What a decoder reads its weights from."""

    @property
    def formats(self) -> frozenset[str]:
        """The formats of its packed weights."""

    def get(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A dense tensor in the dtype it is stored in. Raises ModelError: missing, or of another shape."""

    def linear(self, module: str, shape: tuple[int, int]) -> Loaded:
        """The weight of a linear layer, dense or packed. Raises ModelError: missing, or not as config.json says."""


def open_weights(path: Path, scheme: Scheme | None = None) -> Checkpoint:
    """The checkpoint of a folder, or of a GGUF file. Raises ModelError as they do."""
    return open_gguf(path) if path.suffix == ".gguf" else Weights(path, scheme)


class Weights:
    """Tensors by name, from `model.safetensors` or from the shards its index names."""

    def __init__(self, folder: Path, scheme: Scheme | None = None) -> None:
        """Map every file of the checkpoint; `scheme` says how its linear layers are quantized.

        Raises:
            ModelError: no checkpoint, a shard missing, or a file that is cut short or malformed.
        """
        self._folder, self._scheme = folder, scheme
        if (folder / INDEX).is_file():
            weight_map = read_json(folder / INDEX).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ModelError(f"{folder / INDEX} has no weight_map: fetch the model again")
            names = sorted({str(name) for name in weight_map.values()})
        else:
            names = [SINGLE]
        files = [_open(folder / name) for name in names]
        self._file_of = {tensor: file for file in files for tensor in file.keys()}  # noqa: SIM118

    @property
    def formats(self) -> frozenset[str]:
        """The formats of its packed weights."""
        return frozenset((self._scheme.format,)) if self._scheme else frozenset()

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._file_of

    def linear(self, module: str, shape: tuple[int, int]) -> Loaded:
        """The weight of the linear layer `module`, which has `shape` [outputs, inputs].

        Raises:
            ModelError: as `get`, or it does not fit the scheme, or is quantized and no scheme says how.
        """
        if self._scheme is not None and self._scheme.covers(module):
            return read_linear(self, module, shape, self._scheme)
        weight = self.get(f"{module}.weight", shape)
        if weight.dtype not in DENSE:
            raise ModelError(
                f"{self._folder}: tensor '{module}.weight' is {weight.dtype}, and config.json's quantization_config "
                "does not say how it is quantized: fetch the whole model again"
            )
        return Loaded(weight)

    def get(self, name: str, shape: tuple[int, ...] | None) -> torch.Tensor:
        """The tensor `name` in the dtype it is stored in, still mapped.

        Raises:
            ModelError: it is missing, or has another shape than config.json implies (None: any).
        """
        if name not in self._file_of:
            raise ModelError(
                f"{self._folder}: the checkpoint has no tensor {name!r} that config.json asks for"
            )
        tensor: torch.Tensor = self._file_of[name].get_tensor(name)
        if shape is not None and tuple(tensor.shape) != shape:
            raise ModelError(
                f"{self._folder}: tensor {name!r} is {list(tensor.shape)}, config.json implies {list(shape)}"
            )
        return tensor


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"{path} is missing: fetch the model's safetensors files into its folder")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a whole safetensors file ({error}): fetch it again") from None
