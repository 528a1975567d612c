"""To the device and back without waiting for it: a step is planned and handed over while another is computed.

On a CPU nothing is copied, and nothing waits.
"""

from __future__ import annotations

from typing import Any

import torch

from hub_loader.errors import UsageError

CPU = torch.device("cpu")


def find_device(name: str) -> torch.device:
    """The device that a name like "cpu", "cuda" or "cuda:1" means.

    Raises:
        UsageError: it means none, or one that this machine does not have.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r}: expected cpu, cuda or cuda:NUMBER") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r}: expected cpu, cuda or cuda:NUMBER")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here: "
            "use device='cpu', or a torch built for CUDA on a machine with a GPU"
        )
    # With its number, as tensors name it.
    return device if device.type == "cpu" else torch.device("cuda", device.index or 0)


def put(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device; from pinned memory, for else the copy would wait for the device."""
    if device.type == "cpu" or tensor.device == device:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Readback:
    """Tensors on their way to the host, since this was made; asking for one waits for all."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._event: Any = None
        self._tensors = tensors
        if tensors and tensors[0].is_cuda:
            self._tensors = tuple(
                torch.empty(each.shape, dtype=each.dtype, pin_memory=True).copy_(each, non_blocking=True)
                for each in tensors
            )
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def lists(self) -> list[Any]:
        """The tensors' values as lists of lists."""
        if self._event is not None:
            self._event.synchronize()
        return [each.tolist() for each in self._tensors]
