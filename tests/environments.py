"""Environments of their own for other releases of the stock clients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def make_environment(folder: Path, *installs: tuple[str, ...]) -> Path:
    """An environment with what each pip line of `installs` names, in this order; returns its interpreter.

    This environment's pip installs into it, and nothing is compiled before it is imported: half the time of `venv`
    and a pip of its own.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    for packages in installs:
        pip(python, "install", "--no-compile", *packages)
    return python


def pip(python: Path, *arguments: str) -> None:
    """Run this environment's pip on the environment of `python`."""
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *arguments, *quiet], check=True)
