"""An environment described by hand. Pure.

What is not stated is taken from a base: this machine, or the `khub env --json` of another. Driver and GPUs
belong to a machine, so a description drops the base's: a variant is then checked against stated GPUs, or none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .environment import Environment
from .errors import UsageError
from .torch_files import Torch, local_cuda, local_rocm
from .variant import Version, dotted

_TORCH_VERSIONS = ("cuda", "rocm", "xpu")
# From these releases on torch's own Linux wheels have the C++11 ABI.
_FIRST_CXX11: Version = (2, 7)
_FIRST_CXX11_AARCH64: Version = (2, 6)


@dataclass(frozen=True)
class Description:
    """What somebody states of an environment, as they write it; None: not stated, `sm` empty: no GPU stated.

    `torch` is a release (2.9, 2.9.1+cu128) or "none", `python` a version (3.12, 3.13t) or tag (cp312), `sm`
    compute capabilities (90, 9.0), `cpu` a torch without a GPU; `cuda`, `rocm`, `xpu`, `driver_cuda`, `glibc`,
    `musl`, `macos` and `tvm_ffi` are versions like 12.8. `cxx11_abi` follows torch's own wheels if not stated.
    """

    torch: str | None = None
    cuda: str | None = None
    rocm: str | None = None
    xpu: str | None = None
    cpu: bool = False
    python: str | None = None
    sm: tuple[str, ...] = ()
    arch: str | None = None
    os: str | None = None
    glibc: str | None = None
    musl: str | None = None
    macos: str | None = None
    tvm_ffi: str | None = None
    driver_cuda: str | None = None
    cxx11_abi: bool | None = None

    @property
    def is_empty(self) -> bool:
        return self == Description()


def describe_environment(base: Environment, description: Description) -> Environment:
    """`base` with what `description` states.

    Raises:
        UsageError: a value is malformed, or two contradict each other.
    """
    if description.is_empty:
        return base
    stated = description
    _check_contradictions(stated)
    changed = replace(
        _with_system(base, stated),
        arch=stated.arch or base.arch,
        python=_python_tag(stated.python) if stated.python else base.python,
        compute_capabilities=tuple(_capability(text) for text in stated.sm),
        driver=None,
        driver_cuda=_version("--driver-cuda", stated.driver_cuda),
        tvm_ffi=_version("--tvm-ffi", stated.tvm_ffi) or base.tvm_ffi,
    )
    return replace(changed, torch=_torch(base, stated, changed))


def _check_contradictions(stated: Description) -> None:
    toolkits = [name for name in ("cuda", "rocm", "xpu", "cpu") if getattr(stated, name)]
    if len(toolkits) > 1:
        raise UsageError(
            f"--{' and --'.join(toolkits)} contradict each other: a torch is built for one of them"
        )
    local = (local_cuda(stated.torch or ""), local_rocm(stated.torch or ""))
    given = (_version("--cuda", stated.cuda), _version("--rocm", stated.rocm))
    if toolkits and any(local) and local != given:
        raise UsageError(f"--torch {stated.torch} and --{toolkits[0]} contradict each other: leave one out")
    if stated.torch == "none" and toolkits:
        raise UsageError(f"--torch none and --{toolkits[0]} contradict each other: leave one out")
    if stated.sm and stated.cpu:
        raise UsageError("--sm and --cpu contradict each other: a GPU is used by a torch built for CUDA")
    if stated.glibc and stated.musl:
        raise UsageError("--glibc and --musl contradict each other: a system has one C library")


def _with_system(base: Environment, stated: Description) -> Environment:
    """The operating system and the versions that go with it: another system's are not the base's."""
    os = stated.os or base.os
    glibc, musl = _version("--glibc", stated.glibc), _version("--musl", stated.musl)
    macos = _version("--macos", stated.macos)
    if os == base.os:
        macos = macos or base.macos
        if not (glibc or musl):
            glibc, musl = base.glibc, base.musl
    return replace(base, os=os, glibc=glibc, musl=musl, macos=macos)


def _torch(base: Environment, stated: Description, changed: Environment) -> Torch | None:
    if stated.torch == "none":
        return None
    torch = base.torch
    if stated.torch is not None:
        version = _version("--torch", stated.torch)
        assert version is not None
        local = (local_cuda(stated.torch), local_rocm(stated.torch))
        same = torch if torch is not None and "+" not in stated.torch else None
        torch = Torch(
            version,
            stated.torch,
            local[0] or (same.cuda if same else None),
            _usual_abi(version, changed),
            local[1] or (same.rocm if same else None),
            same.xpu if same else None,
        )
    elif torch is not None and (changed.os, changed.arch) != (base.os, base.arch):
        torch = replace(torch, cxx11_abi=_usual_abi(torch.version, changed))
    toolkits = {name: _version(f"--{name}", getattr(stated, name)) for name in _TORCH_VERSIONS}
    if any(toolkits.values()) or stated.cpu:
        if torch is None:
            raise UsageError(
                "there is no torch here to be built for anything: state its release with --torch"
            )
        torch = replace(torch, **toolkits)  # type: ignore[arg-type]
        if stated.torch is None or "+" not in stated.torch:
            torch = replace(torch, release=torch.release.partition("+")[0] + _local(torch))
    if torch is not None and stated.cxx11_abi is not None:
        torch = replace(torch, cxx11_abi=stated.cxx11_abi)
    return torch


def _usual_abi(version: Version, environment: Environment) -> bool | None:
    """The C++ ABI of torch's own wheel of that release; None where there is no choice."""
    if environment.os != "linux":
        return None
    return version >= (_FIRST_CXX11_AARCH64 if environment.arch == "aarch64" else _FIRST_CXX11)


def _local(torch: Torch) -> str:
    if torch.cuda is not None:
        return f"+cu{torch.cuda[0]}{torch.cuda[1]}"
    if torch.rocm is not None:
        return f"+rocm{dotted(torch.rocm)}"
    return "+xpu" if torch.xpu is not None else "+cpu"


def _python_tag(text: str) -> str:
    """cp312 of "3.12" and of "cp312", cp313t of "3.13t"."""
    match = re.fullmatch(r"(?:cp)?3\.?(\d{1,3})(?:\.\d+)?(t?)", text, re.ASCII)
    if not match:
        raise UsageError(f"--python {text!r} is no version: write it like 3.12, or 3.13t")
    return f"cp3{match[1]}{match[2]}"


def _capability(text: str) -> Version:
    """(9, 0) of "90", "9.0" and "sm_90"; the last digit is the minor."""
    match = re.fullmatch(r"(?:sm_)?(\d{1,3})\.?(\d)[af]?", text, re.ASCII)
    if not match:
        raise UsageError(f"--sm {text!r} is no compute capability: write it like 90 or 9.0")
    return int(match[1]), int(match[2])


def _version(option: str, text: str | None) -> Version | None:
    if text is None:
        return None
    match = re.match(r"(\d{1,9})\.(\d{1,9})(?![\d])", text, re.ASCII)
    if not match:
        raise UsageError(f"{option} {text!r} is no version: write it like 12.8")
    return int(match[1]), int(match[2])


def from_options(options: Mapping[str, Any]) -> Description:
    """The description among a command's parsed options; None and missing ones are not stated."""
    known = {field.name for field in fields(Description)}
    stated = {key: value for key, value in options.items() if key in known and value is not None}
    stated["sm"] = tuple(stated.get("sm", ()))
    return Description(**stated)
