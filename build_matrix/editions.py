"""Bring a `build.toml` of an older edition to the current one, in memory.

The Hub's format named its edition only from the fifth on; what came before is told apart by its keys:

    1   components name a `language` (cuda unless said otherwise) instead of a backend; `[torch] universal`
    2   components name a backend; `[general]` has `universal`, `cuda-minver` and `cuda-maxver`, no backends
    3   `[general]` lists its backends; no framework table means Python only; the version may be missing
    4   everything of edition 5 but `edition`, and one `stable-abi` version for all backends

Each rule below is a step of that history and does nothing to a file that is already past it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EDITION = 5

# What a "universal" kernel of the first two editions ran on.
_UNIVERSAL = ("cann", "cpu", "cuda", "metal", "neuron", "rocm", "xpu")
_LANGUAGES = {"cuda": ("cuda",), "cuda-hipify": ("cuda", "rocm"), "metal": ("metal",)}


def to_current(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The file's content as the current edition spells it; unchanged when it names an edition.

    What is malformed stays as it is: the reader of the current edition says what is wrong with it.
    """
    general, kernels = data.get("general"), data.get("kernel", {})
    if not isinstance(general, dict) or "edition" in general or not _is_table_of_tables(kernels):
        return data
    general = {"edition": EDITION, "version": 1, **general}
    current = {**data, "general": general}
    if kernels:
        current["kernel"] = kernels = _with_backends(kernels)
    _widen_universal(current, general)
    bounds = {key: general.pop(f"cuda-{key}") for key in ("minver", "maxver") if f"cuda-{key}" in general}
    if bounds:
        general["cuda"] = bounds
    named = {kernel.get("backend") for kernel in kernels.values()}
    general.setdefault("backends", sorted(backend for backend in named if isinstance(backend, str)))
    if not {"torch", "torch-noarch", "tvm-ffi"} & current.keys():
        current["torch-noarch"] = {}
    return current


def _with_backends(kernels: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Edition 1: one component for each backend that its language compiles for."""
    converted = {}
    for name, kernel in kernels.items():
        backends = _LANGUAGES.get(str(kernel.get("language", "cuda")), ())
        if "backend" in kernel or not backends or ("rocm" in backends and f"{name}_rocm" in kernels):
            converted[name] = kernel
            continue
        for backend in backends:
            foreign = {"cuda": "rocm-archs", "rocm": "cuda-capabilities"}.get(backend)
            own = {key: value for key, value in kernel.items() if key not in ("language", foreign)}
            converted[f"{name}_rocm" if backend == "rocm" else name] = {"backend": backend, **own}
    return converted


def _widen_universal(current: dict[str, Any], general: dict[str, Any]) -> None:
    """Editions 1 and 2: `universal` kernels are Python only, on every backend."""
    torch = current.get("torch")
    universal = general.pop("universal", False)
    if isinstance(torch, dict) and "universal" in torch:
        universal = torch["universal"] or universal
        current["torch"] = torch = {key: value for key, value in torch.items() if key != "universal"}
    if universal:
        general.setdefault("backends", list(_UNIVERSAL))
        pyext = {"pyext": torch["pyext"]} if isinstance(torch, dict) and "pyext" in torch else {}
        current.pop("torch", None)
        current["torch-noarch"] = pyext


def _is_table_of_tables(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())
