"""An environment as text: JSON that another machine can read, and one line for people. Pure.

`khub env --json` writes it, `khub explain --env FILE` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from .environment import Environment
from .errors import UsageError
from .torch_files import Torch
from .variant import Version, dotted

_VERSIONS = ("glibc", "tvm_ffi", "musl", "macos", "driver_cuda")
_TORCH_VERSIONS = ("cuda", "rocm", "xpu")


def environment_json(environment: Environment) -> dict[str, Any]:
    """As `khub env --json` prints it; `parse_environment` reads it back."""
    return asdict(environment)


def parse_environment(text: str, *, origin: str) -> Environment:
    """The environment in the output of `khub env --json`; other keys are passed over.

    Raises:
        UsageError: it is none. `origin` names the file.
    """
    try:
        data = json.loads(text)
        known = {field.name for field in fields(Environment)}
        values = {key: value for key, value in data.items() if key in known}
        values |= {key: _pair(values.get(key)) for key in _VERSIONS}
        values["compute_capabilities"] = tuple(_some_pair(c) for c in values.get("compute_capabilities", ()))
        values["torch"] = _parse_torch(values.get("torch"))
        for key in ("python", "arch", "os"):
            _text(values[key])
        if values.get("driver") is not None:
            _text(values["driver"])
        return Environment(**values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{origin} is not the output of `khub env --json` ({type(error).__name__}: {error}): write it again"
        ) from None


def summary(environment: Environment) -> str:
    """One line that names everything a variant is judged by."""
    torch = environment.torch
    parts = [environment.python, f"{environment.arch}-{environment.os}"]
    for name in ("glibc", "musl", "macos"):
        if (version := getattr(environment, name)) is not None:
            parts.append(f"{name} {dotted(version)}")
    if torch is None:
        parts.append("no torch")
    else:
        parts.append(f"torch {torch.release} for {_toolkit(torch)}")
    if environment.tvm_ffi is not None:
        parts.append(f"tvm-ffi {dotted(environment.tvm_ffi)}")
    if environment.driver_cuda is not None:
        parts.append(f"a driver for CUDA {dotted(environment.driver_cuda)}")
    parts += [f"a GPU of {dotted(capability)}" for capability in environment.compute_capabilities]
    return ", ".join(parts)


def _toolkit(torch: Torch) -> str:
    for name, version in (("CUDA", torch.cuda), ("ROCm", torch.rocm), ("XPU", torch.xpu)):
        if version is not None:
            return f"{name} {dotted(version)}"
    return "the CPU"


def _parse_torch(data: Any) -> Torch | None:
    if data is None:
        return None
    known = {field.name for field in fields(Torch)}
    values: dict[str, Any] = {key: value for key, value in data.items() if key in known}
    values |= {key: _pair(values.get(key)) for key in _TORCH_VERSIONS}
    values |= {"version": _some_pair(values["version"]), "release": _text(values["release"])}
    if not isinstance(values.setdefault("cxx11_abi", None), bool | None):
        raise ValueError("cxx11_abi is true, false or null")
    return Torch(**values)


def _pair(value: Sequence[int] | None) -> Version | None:
    return None if value is None else _some_pair(value)


def _some_pair(value: Sequence[int]) -> Version:
    major, minor = value
    if not all(type(part) is int and part >= 0 for part in (major, minor)):
        raise ValueError(f"{value!r} is not [major, minor]")
    return major, minor


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value
