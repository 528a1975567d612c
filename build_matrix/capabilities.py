"""CUDA compute capabilities: which of those a kernel names a compiler can compile, for each component. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CAPABILITY = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")


def is_capability(text: str) -> bool:
    """Whether `text` is spelt like "9.0", "9.0a" (that device alone), "10.0f" (its family) or "9.0+PTX"."""
    return _CAPABILITY.fullmatch(text) is not None


def known(named: Iterable[str], supported: Sequence[str]) -> tuple[str, ...]:
    """Those of `named` that a compiler for the plain capabilities `supported` knows, in the order named."""
    return tuple(capability for capability in named if _is_known(capability, supported))


def union(capabilities: Iterable[str]) -> tuple[str, ...]:
    """Each capability once, ascending; "9.0+PTX" includes "9.0"."""
    found = set(capabilities)
    return tuple(sorted((c for c in found if f"{c}+PTX" not in found), key=_key))


def _is_known(capability: str, supported: Sequence[str]) -> bool:
    major, minor, suffix = _key(capability)
    # Architecture-specific code exists from Hopper on, family-specific code from Blackwell on.
    oldest = {"a": (9, 0), "f": (10, 0)}.get(suffix[:1], (0, 0))
    return f"{major}.{minor}" in supported and (major, minor) >= oldest


def _key(capability: str) -> tuple[int, int, str]:
    match = _CAPABILITY.fullmatch(capability)
    if match is None:
        raise ValueError(f"{capability!r} is no compute capability")
    return int(match[1]), int(match[2]), match[3] + (match[4] or "")
