"""The rates that a kernel's time is held against, measured beside it: reading, copying, multiply-adds."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("_machine.cpp")
_SIDE = 8192  # of the matrices that a GPU multiplies
_FLOATS = 1 << 26  # 256 MiB: past every cache
_TURNS = 2_000_000  # some milliseconds


@dataclass(frozen=True)
class Probe:
    """A call that does nothing but move `work` bytes (or do `work` operations) as fast as the cores can."""

    work: float
    run: Callable[[], object]


def probes(threads: int) -> dict[str, Probe]:
    """`read` and `copy` in bytes (both directions counted), `fma` in floating point operations.

    Compiled for this machine by g++.

    Raises:
        subprocess.CalledProcessError: there is no g++, or it has no OpenMP.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "machine.so"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi"]
        subprocess.run(["g++", *flags, _SOURCE, "-o", path], check=True)
        library = ctypes.CDLL(str(path))
    library.read_floats.restype = library.multiply_add.restype = ctypes.c_float
    source, target = torch.ones(_FLOATS), torch.ones(_FLOATS // 2)
    start, into = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (source, target))
    count, half, turns = (ctypes.c_int64(n) for n in (_FLOATS, _FLOATS // 2, _TURNS))

    def copy_half() -> tuple[torch.Tensor, torch.Tensor]:
        library.copy_floats(into, start, half, threads)
        return source, target  # which keeps the memory alive as long as the call

    def read_all() -> tuple[float, torch.Tensor]:
        return library.read_floats(start, count, threads), source

    read, copy = Probe(4.0 * _FLOATS, read_all), Probe(4.0 * _FLOATS, copy_half)
    fma = Probe(
        2.0 * 8 * 12 * _TURNS * threads,
        lambda: library.multiply_add(turns, threads),
    )
    return {"read": read, "copy": copy, "fma": fma}


def gpu_probes() -> dict[str, Probe]:
    """The same of the GPU in use: torch's copy of 1 GiB for `read` and `copy`, its bfloat16 product for `fma`.

    Random values: of zeros a GPU multiplies faster, as its clock stays higher.
    """
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    left, right = (torch.randn(_SIDE, _SIDE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = torch.empty_like(left)
    copy = Probe(2.0 * source.nbytes, lambda: target.copy_(source))
    fma = Probe(2.0 * _SIDE**3, lambda: torch.mm(left, right, out=product))
    return {"read": copy, "copy": copy, "fma": fma}
