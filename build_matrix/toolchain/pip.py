"""Ask the user's own pip: its indexes, mirrors, proxies and credentials are the right ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hub_loader.errors import ToolchainError


@dataclass(frozen=True)
class WheelLocation:
    """Where pip would take a wheel from, and the SHA-256 the index states for the whole file."""

    url: str
    version: str
    sha256: str | None


def locate_wheel(requirement: str, *, python: str, platform: str) -> WheelLocation:
    """Where pip would get `requirement` for another interpreter, e.g. python="3.11", platform="manylinux_2_28_x86_64".

    Raises:
        ToolchainError: the index has no such wheel, or cannot be reached.
    """
    # --target is what lets pip resolve for a foreign interpreter; --dry-run keeps it from being written.
    options = [
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
        "--target",
        "unused",
    ]
    foreign = ["--only-binary=:all:", "--python-version", python]
    foreign += [option for tag in _compatible(platform) for option in ("--platform", tag)]
    report = json.loads(_pip(["install", *options, *foreign, requirement], requirement))
    item = report["install"][0]
    info = item["download_info"]
    return WheelLocation(
        url=info["url"],
        version=item["metadata"]["version"],
        sha256=info.get("archive_info", {}).get("hashes", {}).get("sha256"),
    )


def _compatible(platform: str) -> list[str]:
    """A platform tag and the older ones that wheels for it may carry; pip takes each literally."""
    match = re.fullmatch(r"manylinux_2_(\d+)_(.+)", platform)
    if match is None:
        return [platform]
    newest, arch = int(match[1]), match[2]
    return [*(f"manylinux_2_{minor}_{arch}" for minor in range(newest, 4, -1)), f"manylinux2014_{arch}"]


def install_into(folder: Path, requirements: Sequence[str]) -> None:
    """Unpack exactly `requirements`, without their dependencies, into `folder`.

    Raises:
        ToolchainError: the index lacks one, or cannot be reached.
    """
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--no-compile", "--target", str(folder)]
    _pip(["install", *options, *requirements], " ".join(requirements))


def _pip(arguments: list[str], what: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            "see pip's output"
        ]
        raise ToolchainError(
            f"pip cannot provide {what}: {lines[-1]}; check the network and pip's index settings"
        )
    return done.stdout
