"""Debian packages without root: found by apt with a private configuration, unpacked, never installed.

The archive is the one the machine's own apt uses, or what KHUB_DEBIAN names; the suite is the matrix's.
apt's own lists, sources and state are not touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hub_loader.errors import ToolchainError

from ..matrix import DebianPackages
from .download import download
from .pins import Pins
from .traffic import Count, uncounted

ARCHIVE_VARIABLE = "KHUB_DEBIAN"
_TOOLS = ("apt-get", "dpkg-deb")
_URI_LINE = re.compile(r"'([^']+)' (\S+) (\d+)")


def unpack_packages(
    folder: Path, source: DebianPackages, downloads: Path, pins: Pins, count: Count = uncounted
) -> None:
    """Unpack `source` into `folder`, as if it were the root of a system; `count` is told the bytes fetched.

    Raises:
        ToolchainError: apt or dpkg is not there, the archive lacks a package, or a file is not as locked.
    """
    if tool := missing_tool():
        raise ToolchainError(
            f"no {tool} on this machine: {', '.join(source.packages)} come from Debian packages; "
            "install apt and dpkg, or build this variant on Debian"
        )
    for url, name in _locate(source):
        package = download(url, name, downloads, pins, count)
        _run(["dpkg-deb", "-x", str(package), str(folder)], name)


def missing_tool() -> str | None:
    """The first of the programs that packages are fetched with and that this machine lacks; None if it has all."""
    return next((tool for tool in _TOOLS if shutil.which(tool) is None), None)


def _locate(source: DebianPackages) -> list[tuple[str, str]]:
    """Where the packages are, and their file names, asked of an apt that knows nothing but their suite."""
    archive = _archive()
    with tempfile.TemporaryDirectory(prefix="khub-apt-") as work:
        root = Path(work)
        for folder in ("lists/partial", "cache/archives/partial"):
            (root / folder).mkdir(parents=True)
        (root / "status").touch()
        (root / "sources.list").write_text(f"deb {archive} {source.suite} {source.component}\n")
        config = root / "apt.conf"
        config.write_text(
            f'Dir::State "{root}";\nDir::State::lists "{root}/lists";\nDir::State::status "{root}/status";\n'
            f'Dir::Cache "{root}/cache";\nDir::Etc::sourcelist "{root}/sources.list";\n'
            'Dir::Etc::sourceparts "-";\n'
            f'APT::Architecture "{source.architecture}";\nAPT::Architectures "{source.architecture}";\n'
            'APT::Sandbox::User "";\nAcquire::Languages "none";\n'
        )
        what = f"{source.suite}/{source.component} of {archive}"
        _run(["apt-get", "--quiet", "update"], what, config)
        uris = _run(["apt-get", "--quiet", "download", "--print-uris", *source.packages], what, config)
    # A colon of a version (an epoch) and a tilde are escaped in names and addresses alike.
    return [(match[1], match[2].replace("%3a", ":")) for match in _URI_LINE.finditer(uris)]


def _archive() -> str:
    """The address of a Debian archive: KHUB_DEBIAN, else the first that the machine's apt knows.

    Raises:
        ToolchainError: there is none.
    """
    if given := os.environ.get(ARCHIVE_VARIABLE):
        return given
    known = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], "the machine's package sources")
    for address in known.splitlines():
        if address.rstrip("/").endswith("/debian"):
            return address
    raise ToolchainError(
        f"apt knows no Debian archive: set {ARCHIVE_VARIABLE} to one's address, the folder that holds `dists`"
    )


def _run(command: Sequence[str], what: str, config: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    if config is not None:
        environment["APT_CONFIG"] = str(config)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [done.stderr.strip()]
        raise ToolchainError(
            f"{' '.join(command[:1])} cannot provide {what}: {errors[0]}; check the network and apt's sources"
        )
    return done.stdout
