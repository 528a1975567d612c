"""What serves each kernel slot: which package, version and variant, signed by whom, and why that one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hub_loader.errors import UsageError

TORCH = "torch"
PLAIN = "nothing else was asked for"
_HEADER = ("slot", "source", "version", "variant", "signature", "why", "self-test")


@dataclass(frozen=True)
class Binding:
    """What serves a slot: repository or folder, its version and build variant, "-" for plain torch.

    signature: who has signed it, as the loader's rules of trust see it. reason: why this variant, or why plain torch.
    test: what the self-test on this device found; "" before it ran.
    """

    slot: str
    source: str = TORCH
    version: str = "-"
    variant: str = "-"
    signature: str = "-"
    reason: str = ""
    test: str = ""


def describe(source: str, module: ModuleType, loader: Any) -> tuple[str, str, str, str]:
    """(version, variant, signature, reason) of a module that `loader` has loaded for a source."""
    kernel = next(kernel for kernel in loader.get_loaded_kernels() if kernel.module is module)
    version = f"v{kernel.metadata.version}"
    if kernel.repo_info is None:
        explained = loader.explain_folder(kernel.path)
        signature = "none: a folder of this machine"
        if not Path(source).is_dir():
            signature = f"none: LOCAL_KERNELS names {kernel.path}"
    else:  # the process keeps what the version is, so that this asks no hub again
        repo_id, number = split_source(source)
        explained = loader.explain(repo_id, version=number)
        signature = f"key {explained.signer[:16]}" if explained.signer else explained.signed
    reasons = {decision.variant: decision.reason for decision in explained.decisions}
    return version, kernel.variant, signature, reasons.get(kernel.variant, "built here from published source")


def split_source(source: str) -> tuple[str, int | None]:
    """("org/name", 1) of "org/name@1"; None without a version. Raises UsageError for a version that is no number."""
    repo_id, at, version = source.partition("@")
    if at and not version.isdecimal():
        raise UsageError(
            f"kernel {source!r}: {version!r} is not a version: write org/name@version like org/name@1"
        )
    return repo_id, int(version) if at else None


def format_bindings(bindings: Iterable[Binding]) -> str:
    """The table of slots, one line each, columns aligned."""
    rows = [_HEADER, *(astuple(binding) for binding in bindings)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
