"""The compatibility matrix of a version: torch by toolkit, for each Python and platform. Pure.

Every cell is an environment described as on `khub explain`'s command line, and answered by the loader's own
resolver: a green cell is the variant that command chooses there, a grey one has its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hub_loader.described import Description, describe_environment
from hub_loader.environment import Environment
from hub_loader.manifest import BackendInfo
from hub_loader.resolver import Decision, best, resolve
from hub_loader.variant import Platform, Variant, Version, dotted, parse_variant

from .releases import CUDA, GLIBC, MACOS, PLATFORMS, PYTHON, TORCH

# What one page draws at most; an index may list anything.
MAX_VARIANTS = 120
MAX_TOOLKITS = 10
MAX_PLATFORMS = 3


@dataclass(frozen=True)
class Toolkit:
    """What torch is built with: `name` is cpu, cuda, rocm or xpu; cpu alone has no version."""

    name: str
    version: Version | None = None

    def __str__(self) -> str:
        labels = {"cpu": "CPU", "cuda": "CUDA", "rocm": "ROCm", "xpu": "XPU"}
        return labels[self.name] + ("" if self.version is None else f" {dotted(self.version)}")


@dataclass(frozen=True)
class Cell:
    """What one environment gets: `variant` (None: nothing fits) and the resolver's sentence about it."""

    variant: str | None
    reason: str

    @property
    def label(self) -> str:
        """What fits into a cell: what the variant is built for, or the reason without the environment's side."""
        return self.reason.partition(", ")[0] if self.variant is None else short_name(self.variant)


@dataclass(frozen=True)
class Table:
    """Torch releases (rows, newest first) by toolkits (columns) for Pythons that all get the same."""

    arch: str
    os: str
    pythons: tuple[str, ...]
    toolkits: tuple[Toolkit, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    @property
    def python(self) -> str:
        """Its Pythons for people: neighbours are a range."""
        plain = [python for python in self.pythons if not python.endswith("t")]
        places = [PYTHON.index(python) for python in plain]
        if len(plain) > 2 and places == list(range(places[0], places[0] + len(places))):
            plain = [f"{plain[0]} to {plain[-1]}"]
        return ", ".join((*plain, *(python for python in self.pythons if python.endswith("t"))))

    @property
    def fits(self) -> int:
        """How many cells have a variant."""
        return sum(cell.variant is not None for _, cells in self.rows for cell in cells)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons of its cells without a variant, as cells show them, each once."""
        return tuple(dict.fromkeys(c.label for _, cells in self.rows for c in cells if c.variant is None))


def matrix(variants: Mapping[str, BackendInfo]) -> tuple[Table, ...]:
    """The tables of a version, by platform, for at most MAX_VARIANTS variants, each in the grammar."""
    parsed = [parse_variant(name) for name in variants]
    toolkits, tvm_ffi = _toolkits(parsed), _newest_tvm_ffi(parsed)
    tables: list[Table] = []
    for arch, os in _platforms(parsed):
        groups: dict[tuple[tuple[Cell, ...], ...], list[str]] = {}
        for python in PYTHON:
            rows = tuple(
                tuple(
                    _cell(variants, describe(arch, os, python, torch, toolkit, tvm_ffi))
                    for toolkit in toolkits
                )
                for torch in reversed(TORCH)
            )
            groups.setdefault(tuple(tuple(_shown(cell) for cell in row) for row in rows), []).append(python)
        for cells, pythons in groups.items():
            named = tuple(zip(reversed(TORCH), cells, strict=True))
            tables.append(Table(arch, os, tuple(pythons), toolkits, named))
    return tuple(tables)


def describe(
    arch: str, os: str, python: str, torch: str, toolkit: Toolkit, tvm_ffi: Version | None
) -> Environment:
    """A cell's environment: as `khub explain` makes it of these options, whatever machine it runs on."""
    return describe_environment(
        Environment(python="cp311", arch="x86_64", os="linux"),
        description(arch, os, python, torch, toolkit, tvm_ffi),
    )


def description(
    arch: str, os: str, python: str, torch: str, toolkit: Toolkit, tvm_ffi: Version | None
) -> Description:
    """A cell as options of `khub explain`; no GPU and no driver is stated, so neither is checked."""
    version = None if toolkit.version is None else dotted(toolkit.version)
    return Description(
        torch=torch,
        cpu=toolkit.name == "cpu",
        cuda=version if toolkit.name == "cuda" else None,
        rocm=version if toolkit.name == "rocm" else None,
        xpu=version if toolkit.name == "xpu" else None,
        python=python,
        arch=arch,
        os=os,
        glibc=dotted(GLIBC) if os == "linux" else None,
        macos=dotted(MACOS) if os == "darwin" else None,
        tvm_ffi=None if tvm_ffi is None else dotted(tvm_ffi),
    )


def short_name(name: str) -> str:
    """A variant's name without its platform, for people: what it binds to, and its toolkit."""
    variant = parse_variant(name)
    framework, backend = variant.framework, variant.backend
    at = "" if framework.version is None else dotted(framework.version)
    built = {
        "torch": f"torch {at}",
        "torch-stable-abi": f"stable ABI {at}",
        "tvm-ffi": f"tvm-ffi {at}",
        "torch-noarch": "Python",
        "none": "no torch",
    }[framework.name]
    toolkit = backend.name if backend.version is None else str(backend)
    return " · ".join(part for part in (variant.python, built, toolkit) if part)


def _cell(variants: Mapping[str, BackendInfo], environment: Environment) -> Cell:
    decisions = resolve(environment, variants)
    chosen = best(decisions)
    if chosen is not None:
        return Cell(chosen, decisions[0].reason)
    if not decisions:
        return Cell(None, "has no variant")
    nearest = min(decisions, key=lambda decision: _distance(decision, environment))
    return Cell(None, nearest.reason)


def _distance(decision: Decision, environment: Environment) -> tuple[bool, bool, bool, int, int, str]:
    """How far a refused variant is from what was wanted: only which of several reasons a cell shows."""
    variant = parse_variant(decision.variant)
    torch = environment.torch
    cuda = None if torch is None or torch.cuda is None else torch.cuda[0]
    return (
        variant.backend.name not in (environment.backend, "universal"),
        variant.platform not in (None, Platform(environment.arch, environment.os)),
        variant.backend.version is not None and variant.backend.version[0] != cuda,
        *_static_distance(variant),
        decision.variant,
    )


@lru_cache(maxsize=4096)
def _static_distance(variant: Variant) -> tuple[int, int]:
    """The part of the distance that is the same everywhere: the kind of build, and the newest first."""
    tiers = ("torch-stable-abi", "torch-noarch", "none", "torch", "tvm-ffi")
    version, python = variant.framework.version or (0, 0), (variant.python or "").strip("abcipt") or "0"
    return tiers.index(variant.framework.name), -1000 * version[1] - int(python)


def _shown(cell: Cell) -> Cell:
    """The cell as a table shows it for several Pythons: a reason's second half may name one of them."""
    return cell if cell.variant is not None else Cell(None, cell.label)


def _toolkits(variants: Iterable[Variant]) -> tuple[Toolkit, ...]:
    named = {Toolkit(v.backend.name, v.backend.version) for v in variants if v.backend.version is not None}
    known = {Toolkit("cuda", version) for version in CUDA}
    versioned = (known | named) - {
        toolkit for toolkit in named if toolkit.name not in ("cuda", "rocm", "xpu")
    }
    ordered = sorted(versioned, key=lambda toolkit: (toolkit.name, toolkit.version or (0, 0)))
    return (Toolkit("cpu"), *ordered[: MAX_TOOLKITS - 1])


def _platforms(variants: Iterable[Variant]) -> Sequence[tuple[str, str]]:
    named = {(v.platform.arch, v.platform.os) for v in variants if v.platform is not None}
    return (*PLATFORMS, *sorted(named - set(PLATFORMS)))[:MAX_PLATFORMS]


def _newest_tvm_ffi(variants: Iterable[Variant]) -> Version | None:
    versions = [v.framework.version for v in variants if v.framework.name == "tvm-ffi"]
    return max((version for version in versions if version is not None), default=None)
