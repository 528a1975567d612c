"""Ask the user's own pip: its indexes, mirrors, proxies and credentials are the right ones.

`pip index` names every file that it finds and fetches none. Resolving would fetch whole wheels, of hundreds of
megabytes, where an index does not serve their metadata apart from them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from hub_loader.errors import ToolchainError


class NoSuchWheelError(ToolchainError):
    """The index was reached and has no wheel that fits."""


@dataclass(frozen=True)
class WheelLocation:
    """Where pip would take a wheel from."""

    url: str

    @property
    def name(self) -> str:
        """The wheel's file name."""
        return unquote(PurePosixPath(urlsplit(self.url).path).name)


# Of what is fetched through pip nothing depends on it; every package of the matrix has wheels for this one.
ANY_PYTHON = "3.11"
_FOUND = re.compile(r"^ *Found link (\S+?)(?:#\S*)?(?: \(.*\))?, version: \S+$", re.MULTILINE)


def locate_wheel(requirement: str, *, platform: str, python: str = ANY_PYTHON) -> WheelLocation:
    """Where pip would get `requirement` for another interpreter, e.g. platform="manylinux_2_28_x86_64".

    `requirement` is of the form "torch==2.13.0", and means that version alone: not 2.13.0+cpu.

    Raises:
        NoSuchWheelError: the index has no such wheel.
        ToolchainError: it cannot be reached.
    """
    parsed = Requirement(requirement)
    (pin,) = parsed.specifier
    platforms = _compatible(platform)
    foreign = ["--only-binary=:all:", "--python-version", python]
    foreign += [option for tag in platforms for option in ("--platform", tag)]
    answer = _pip(["index", "versions", parsed.name, "-vv", *foreign], requirement)
    urls = [match[1] for match in _FOUND.finditer(answer)]
    if not urls:
        raise ToolchainError(f"pip does not say where it finds {parsed.name}: use pip 23.1 or newer")
    url = best_wheel(urls, Version(pin.version), platforms, python)
    if url is None:
        raise NoSuchWheelError(
            f"pip finds no wheel of {requirement} for Python {python} on {platform}: check its index settings"
        )
    return WheelLocation(url)


def best_wheel(urls: Iterable[str], version: Version, platforms: Sequence[str], python: str) -> str | None:
    """Of `urls`, the wheel of `version` that pip prefers: by tag, then the highest build number. Pure.

    `platforms` are the best first. Of equal ones the first is taken; a URL is given without credentials.
    """
    major, minor = map(int, python.split("."))
    interpreter = f"cp{major}{minor}"
    tags = [
        *cpython_tags((major, minor), [interpreter], platforms),
        *compatible_tags((major, minor), interpreter, platforms),
    ]
    rank = {tag: -number for number, tag in enumerate(tags)}
    fitting = []
    for url in urls:
        parts = urlsplit(url)
        try:
            _, found, build, its_tags = parse_wheel_filename(unquote(PurePosixPath(parts.path).name))
        except InvalidWheelFilename:
            continue  # a source archive
        ranks = [rank[tag] for tag in its_tags if tag in rank]
        if found == version and ranks:
            plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
            fitting.append((max(ranks), build, plain))
    return max(fitting, key=lambda candidate: candidate[:2])[2] if fitting else None


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
