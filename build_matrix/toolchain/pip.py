"""Ask the user's own pip: its indexes, mirrors, proxies and credentials are the right ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from hub_loader.errors import ToolchainError


class NoSuchWheelError(ToolchainError):
    """The index was reached and has no wheel that fits."""


@dataclass(frozen=True)
class WheelLocation:
    """Where pip would take a wheel from, the SHA-256 the index states for the whole file, what it requires."""

    url: str
    version: str
    sha256: str | None
    requires: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The wheel's file name."""
        return unquote(PurePosixPath(urlsplit(self.url).path).name)


# Of what is fetched through pip nothing depends on it; every package of the matrix has wheels for this one.
ANY_PYTHON = "3.11"


def locate_wheel(requirement: str, *, platform: str, python: str = ANY_PYTHON) -> WheelLocation:
    """Where pip would get `requirement` for another interpreter, e.g. platform="manylinux_2_28_x86_64".

    Raises:
        NoSuchWheelError: the index has no such wheel.
        ToolchainError: it cannot be reached.
    """
    return locate_wheels([requirement], platform=platform, python=python)[0]


def locate_wheels(
    requirements: Sequence[str], *, platform: str, python: str = ANY_PYTHON
) -> list[WheelLocation]:
    """As `locate_wheel`, of several requirements, in no particular order."""
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
    # "==2.13.0" would also take 2.13.0+cpu, another wheel with other headers, where an index has it.
    exactly = [re.sub(r"(?<!=)==(?!=)", "===", requirement) for requirement in requirements]
    report = json.loads(_pip(["install", *options, *foreign, *exactly], " ".join(requirements)))
    return [
        WheelLocation(
            url=item["download_info"]["url"],
            version=item["metadata"]["version"],
            sha256=item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256"),
            requires=tuple(item["metadata"].get("requires_dist", ())),
        )
        for item in report["install"]
    ]


def available_versions(package: str) -> list[str]:
    """Every version of `package` that the index has wheels of for the running interpreter, newest first.

    Raises:
        ToolchainError: the index has none, or cannot be reached.
    """
    answer = _pip(["index", "versions", package], package)
    listed = re.search(r"^Available versions: (.+)$", answer, re.MULTILINE)
    if listed is None:
        raise ToolchainError(f"pip lists no versions of {package}: update pip")
    return listed[1].split(", ")


def _compatible(platform: str) -> list[str]:
    """A platform tag and the older ones that wheels for it may carry; pip takes each literally."""
    match = re.fullmatch(r"manylinux_2_(\d+)_(.+)", platform)
    if match is None:
        return [platform]
    newest, arch = int(match[1]), match[2]
    tags = [f"manylinux_2_{minor}_{arch}" for minor in range(newest, 4, -1)]
    return [*tags, *(f"manylinux{year}_{arch}" for year in ("2014", "2010", "1"))]


def _pip(arguments: list[str], what: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            "see pip's output"
        ]
        kind = NoSuchWheelError if "No matching distribution" in done.stderr else ToolchainError
        raise kind(f"pip cannot provide {what}: {lines[-1]}; check the network and pip's index settings")
    return done.stdout
