"""Kernel slots: which package's functions the engine calls for each kind of work.

A slot's source is "torch" (plain torch), a repository with an optional version ("org/paged-attention@1"),
or a folder with a built package. Everything a hub kernel needs is asked of `hub_loader`'s public functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import hub_loader
from hub_loader.errors import UsageError

from . import torch_ops

TORCH = "torch"
# slot -> the functions its provider must have
SLOTS: dict[str, tuple[str, ...]] = {
    "attention": ("attend",),
    "kv_write": ("reshape_and_cache_flash",),
    "norm": ("rms_norm", "fused_add_rms_norm"),
    "rotary": ("rotary_embedding",),
    "activation": ("silu_and_mul",),
    "linear": ("linear",),
    "matmul": ("quantize", "matmul"),
    "planner": ("plan_step",),
}
HUB = {
    "attention": "kernel-hub/paged-attention",
    "kv_write": "kernel-hub/paged-attention",
    "norm": "kernel-hub/rmsnorm-rotary",
    "rotary": "kernel-hub/rmsnorm-rotary",
    "activation": "kernel-hub/rmsnorm-rotary",
    "linear": "kernel-hub/dense-linear",
}
HUB_QUANTIZED_MATMUL = "kernel-hub/quantized-matmul"

Load = Callable[..., ModuleType]


@dataclass(frozen=True)
class Binding:
    """What serves a slot: repository or folder, its version and build variant ("-" for plain torch)."""

    slot: str
    source: str
    version: str = "-"
    variant: str = "-"


@dataclass(frozen=True)
class Kernels:
    """The functions the model calls, each from the provider its slot is bound to."""

    attend: Callable[..., Any]
    reshape_and_cache_flash: Callable[..., Any]
    rms_norm: Callable[..., Any]
    fused_add_rms_norm: Callable[..., Any]
    rotary_embedding: Callable[..., Any]
    silu_and_mul: Callable[..., Any]
    linear: Callable[..., Any]
    quantize: Callable[..., Any]
    matmul: Callable[..., Any]
    plan_step: Callable[..., Any]
    bindings: tuple[Binding, ...]


def parse_sources(text: str) -> str | dict[str, str]:
    """Parse the command's spelling: "torch", "hub", or "slot=source,slot=source".

    Raises:
        UsageError: none of these.
    """
    if text in (TORCH, "hub"):
        return text
    pairs = [item.split("=", 1) for item in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise UsageError(
            f"--kernels {text!r}: write torch, hub, or slot=source,… with slots {', '.join(SLOTS)}"
        )
    return {slot.strip(): source.strip() for slot, source in pairs}


def slot_sources(kernels: str | Mapping[str, str], quantize: str | None) -> dict[str, str]:
    """The source of every slot, in the order of SLOTS; slots that are not named run plain torch.

    Raises:
        UsageError: an unknown word or slot, or a matmul kernel with nothing to multiply.
    """
    if isinstance(kernels, str):
        if kernels not in (TORCH, "hub"):
            raise UsageError(f"kernels={kernels!r}: expected 'torch', 'hub' or a mapping from slot to source")
        chosen = dict(HUB) if kernels == "hub" else {}
        if kernels == "hub" and quantize:
            chosen["matmul"] = HUB_QUANTIZED_MATMUL
    else:
        chosen = dict(kernels)
    unknown = ", ".join(repr(slot) for slot in chosen if slot not in SLOTS)
    if unknown:
        raise UsageError(f"unknown kernel slot {unknown}: the slots are {', '.join(SLOTS)}")
    if chosen.get("matmul", TORCH) != TORCH and not quantize:
        raise UsageError(f"slot matmul={chosen['matmul']!r} multiplies quantized weights: set quantize too")
    return {slot: chosen.get(slot, TORCH) for slot in SLOTS}


def bind(
    sources: Mapping[str, str],
    *,
    load: Load | None = None,
    load_local: Load | None = None,
    loaded: Callable[[], Iterable[Any]] | None = None,
) -> Kernels:
    """Load each distinct source once and collect the functions of every slot.

    `load(repo_id, version=…)`, `load_local(path)` and `loaded()` default to hub_loader's get_kernel,
    get_local_kernel and get_loaded_kernels.

    Raises:
        UsageError: a malformed source, or a provider without a function its slot calls.
        KernelHubError: whatever the loader refuses.
    """
    modules: dict[str, ModuleType] = {TORCH: torch_ops}
    for source in sources.values():
        if source not in modules:
            modules[source] = _load(source, load, load_local)
    functions: dict[str, Callable[..., Any]] = {}
    for slot, source in sources.items():
        for name in SLOTS[slot]:
            if not callable(getattr(modules[source], name, None)):
                raise UsageError(f"{source!r} has no function {name!r}, which slot {slot!r} calls")
            functions[name] = getattr(modules[source], name)
    details = dict.fromkeys(modules, ("-", "-"))
    if len(modules) > 1:
        details |= _details(modules, loaded)
    bindings = tuple(Binding(slot, source, *details[source]) for slot, source in sources.items())
    return Kernels(**functions, bindings=bindings)


def format_bindings(bindings: Iterable[Binding]) -> str:
    """The table of slots, one line each, columns aligned."""
    rows = [("slot", "source", "version", "variant")]
    rows += [(b.slot, b.source, b.version, b.variant) for b in bindings]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _load(source: str, load: Load | None, load_local: Load | None) -> ModuleType:
    if Path(source).is_dir():
        return (load_local or hub_loader.get_local_kernel)(Path(source))
    repo_id, _, version = source.partition("@")
    if repo_id.count("/") != 1 or (version and not version.isdecimal()):
        raise UsageError(f"kernel {source!r}: write torch, org/name, org/name@version, or an existing folder")
    return (load or hub_loader.get_kernel)(repo_id, version=int(version) if version else None)


def _details(
    modules: Mapping[str, ModuleType], loaded: Callable[[], Iterable[Any]] | None
) -> dict[str, tuple[str, str]]:
    """(version, variant) of each loaded module, by source."""
    kernels = list((loaded or hub_loader.get_loaded_kernels)())
    return {
        source: (f"v{kernel.metadata.version}", kernel.variant)
        for source, module in modules.items()
        for kernel in kernels
        if kernel.module is module
    }
