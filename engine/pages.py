"""Weights in huge pages: streaming them, the processor looks up one address in 512."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch

_SMALLEST = 4 * 2**20  # bytes; below, the ends that do not fill a page of 2 MiB weigh too much


def in_huge_pages(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor copied to memory that the kernel was asked to hold in huge pages; itself if small or not on a CPU."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux alone has it
    if advice is None or tensor.device.type != "cpu" or tensor.nbytes < _SMALLEST:
        return tensor
    memory = mmap.mmap(-1, tensor.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without them: then the memory is as good as any
        memory.madvise(advice)
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
