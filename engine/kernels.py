"""Kernel slots: which package's functions the engine calls for each kind of work.

A slot's source is "torch" (plain torch), a repository with an optional version ("org/paged-attention@1"),
or a folder with a built package. Everything a hub kernel needs is asked of `hub_loader`'s public functions;
kernel_table.py says what was loaded and why, self_test.py whether it computes what it should.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import hub_loader
from hub_loader.errors import UsageError

from . import torch_ops
from .kernel_table import PLAIN, TORCH, Binding, describe, format_bindings, split_source

__all__ = [
    "HUB",
    "OPTIONAL",
    "SLOTS",
    "Binding",
    "Kernels",
    "bind",
    "format_bindings",
    "parse_sources",
    "slot_sources",
]

# slot -> the functions its provider must have
SLOTS: dict[str, tuple[str, ...]] = {
    "attention": ("attend",),
    "kv_write": ("reshape_and_cache_flash",),
    "norm": ("rms_norm", "fused_add_rms_norm"),
    "rotary": ("rotary_embedding",),
    "qkv": ("qk_norm_rope_cache",),
    "activation": ("silu_and_mul",),
    "linear": ("linear",),
    "matmul": ("PackedWeight", "quantize", "matmul"),
    "planner": ("plan_step",),
}
# The same, of functions that a provider may lack: plain torch's take their place.
OPTIONAL: dict[str, tuple[str, ...]] = {"activation": ("gelu_tanh_and_mul",), "matmul": ("prepack",)}
HUB = {
    "attention": "kernel-hub/paged-attention",
    "kv_write": "kernel-hub/paged-attention",
    "norm": "kernel-hub/rmsnorm-rotary",
    "rotary": "kernel-hub/rmsnorm-rotary",
    "qkv": "kernel-hub/rmsnorm-rotary",
    "activation": "kernel-hub/rmsnorm-rotary",
    "linear": "kernel-hub/dense-linear",
}
HUB_QUANTIZED_MATMUL = "kernel-hub/quantized-matmul"

# What a package multiplies that does not say; those that do have `FORMATS`.
FORMATS = frozenset(("int4", "int8"))


@dataclass(frozen=True)
class Kernels:
    """The functions the model calls, each from the provider its slot is bound to.

    formats: what `matmul` multiplies of PackedWeight's formats; the others run in plain torch.
    """

    attend: Callable[..., Any]
    reshape_and_cache_flash: Callable[..., Any]
    rms_norm: Callable[..., Any]
    fused_add_rms_norm: Callable[..., Any]
    rotary_embedding: Callable[..., Any]
    qk_norm_rope_cache: Callable[..., Any]
    silu_and_mul: Callable[..., Any]
    gelu_tanh_and_mul: Callable[..., Any]
    linear: Callable[..., Any]
    PackedWeight: Callable[..., Any]
    quantize: Callable[..., Any]
    matmul: Callable[..., Any]
    prepack: Callable[..., Any]
    plan_step: Callable[..., Any]
    bindings: tuple[Binding, ...]
    formats: frozenset[str] = FORMATS

    @property
    def takes_trees(self) -> bool:
        """Whether the attention kernel has the argument that draft trees need."""
        return "tree_mask" in inspect.signature(self.attend).parameters

    @property
    def fuses_qkv(self) -> bool:
        """Whether slot qkv has a kernel, in one pass what else is the work of norm, rotary and kv_write."""
        return any(binding.slot == "qkv" and binding.source != TORCH for binding in self.bindings)

    @property
    def takes_int8_activations(self) -> bool:
        """Whether the matmul kernel gains from x in 8 bits."""
        return "int8_activations" in inspect.signature(self.matmul).parameters


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


def slot_sources(kernels: str | Mapping[str, str], quantized: Collection[str] | None) -> dict[str, str]:
    """The source of every slot, in the order of SLOTS; slots that are not named run plain torch.

    quantized: the formats of packed weights, if there are any.

    Raises:
        UsageError: an unknown word or slot, or a matmul kernel with nothing to multiply.
    """
    if isinstance(kernels, str):
        if kernels not in (TORCH, "hub"):
            raise UsageError(f"kernels={kernels!r}: expected 'torch', 'hub' or a mapping from slot to source")
        chosen = dict(HUB) if kernels == "hub" else {}
        if kernels == "hub" and quantized:
            chosen["matmul"] = HUB_QUANTIZED_MATMUL
    else:
        chosen = dict(kernels)
    unknown = ", ".join(repr(slot) for slot in chosen if slot not in SLOTS)
    if unknown:
        raise UsageError(f"unknown kernel slot {unknown}: the slots are {', '.join(SLOTS)}")
    if chosen.get("matmul", TORCH) != TORCH and not quantized:
        raise UsageError(
            f"slot matmul={chosen['matmul']!r} multiplies quantized weights: set quantize too, or run a quantized model"
        )
    return {slot: chosen.get(slot, TORCH) for slot in SLOTS}


def bind(sources: Mapping[str, str], loader: Any = hub_loader) -> Kernels:
    """Load each distinct source once with `loader`'s public functions; collect the functions of every slot.

    Raises:
        UsageError: a malformed source, or a provider without a function its slot calls.
        KernelHubError: whatever the loader refuses.
    """
    modules: dict[str, ModuleType] = {TORCH: torch_ops}
    for source in sources.values():
        if source not in modules:
            modules[source] = _load(source, loader)
    functions: dict[str, Callable[..., Any]] = {}
    for slot, source in sources.items():
        for name in SLOTS[slot]:
            if not callable(getattr(modules[source], name, None)):
                raise UsageError(f"{source!r} has no function {name!r}, which slot {slot!r} calls")
            functions[name] = getattr(modules[source], name)
        for name in OPTIONAL.get(slot, ()):
            functions[name] = getattr(modules[source], name, None) or getattr(torch_ops, name)
    details = {
        source: describe(source, module, loader) for source, module in modules.items() if source != TORCH
    }
    bindings = tuple(
        Binding(slot, source, *details[source]) if source in details else Binding(slot, reason=PLAIN)
        for slot, source in sources.items()
    )
    formats = frozenset(getattr(modules[sources["matmul"]], "FORMATS", FORMATS))
    return Kernels(**functions, bindings=bindings, formats=formats)


def _load(source: str, loader: Any) -> ModuleType:
    if Path(source).is_dir():
        module: ModuleType = loader.get_local_kernel(Path(source))
        return module
    repo_id, version = split_source(source)
    if repo_id.count("/") != 1:
        raise UsageError(f"kernel {source!r}: write torch, org/name, org/name@version, or an existing folder")
    module = loader.get_kernel(repo_id, version=version)
    return module
