"""Torch's headers, without torch: about 12 MB read out of a wheel of 500 MB."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from hub_loader.errors import ToolchainError

from .cache import ToolchainCache
from .pip import locate_wheel
from .ranged import open_source, read_members, safe_path

_FORMAT = 1
# Headers are the same for every Python; this one has wheels of every release the matrix covers.
_PYTHON = "3.11"
_RELEASE = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True)
class TorchSdk:
    """Headers of one torch release for one architecture."""

    release: str
    root: Path

    @property
    def include_dirs(self) -> tuple[Path, ...]:
        include = self.root / "torch" / "include"
        return include, include / "torch" / "csrc" / "api" / "include"


def torch_sdk(cache: ToolchainCache, release: str, arch: str) -> TorchSdk:
    """The SDK of torch `release` (e.g. "2.15.0") for `arch`, fetched on first use.

    Raises:
        ToolchainError: no such wheel, or the index cannot be reached or read by ranges.
    """
    if not _RELEASE.fullmatch(release):
        raise ToolchainError(f"torch release {release!r} must look like 2.15.0")

    def fetch(folder: Path) -> None:
        wheel = locate_wheel(f"torch=={release}", python=_PYTHON, platform=f"manylinux_2_28_{arch}")
        bar = tqdm(desc=f"torch {release} headers", unit="B", unit_scale=True, disable=None, leave=False)
        with open_source(wheel.url) as source, bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            for name, content in read_members(source, _is_wanted, progress):
                path = folder / safe_path(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        if not (folder / "torch" / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            raise ToolchainError(f"{wheel.url} holds no torch headers: use another index")

    key = f"torch-sdk {_FORMAT} {release} {arch}"
    return TorchSdk(release, cache.provide(f"torch-sdk-{release}-{arch}", key, fetch))


def _is_wanted(name: str) -> bool:
    return name.startswith("torch/include/") or name == "torch/version.py"
