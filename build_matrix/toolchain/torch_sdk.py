"""Torch's headers, without torch: 11 MB read out of a wheel of 500, or less beside another release's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hub_loader.errors import ToolchainError

from .cache import ToolchainCache
from .wheel_files import wheel_files

_RELEASE = re.compile(r"\d+\.\d+\.\d+")
_INCLUDE = "torch/include"
PACKAGE = "torch"
"""The package's name; the headers' bytes are counted under it."""


@dataclass(frozen=True)
class TorchSdk:
    """Headers of one torch release for one architecture."""

    release: str
    root: Path

    @property
    def include_dirs(self) -> tuple[Path, ...]:
        include = self.root / _INCLUDE
        return include, include / "torch" / "csrc" / "api" / "include"


def torch_sdk(cache: ToolchainCache, release: str, arch: str) -> TorchSdk:
    """The SDK of torch `release` (e.g. "2.15.0") for `arch`, fetched on first use.

    Raises:
        ToolchainError: no such wheel, it is not as locked, or the index cannot be reached or read by ranges.
    """
    if not _RELEASE.fullmatch(release):
        raise ToolchainError(f"torch release {release!r} must look like 2.15.0")
    return TorchSdk(release, wheel_files(cache, f"{PACKAGE}=={release}", arch, [_INCLUDE]))
