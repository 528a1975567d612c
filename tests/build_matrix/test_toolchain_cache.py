"""The toolchain cache: parts are re-hashed, damage is named and repaired; what is fetched is counted and said."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from build_matrix.console import Console, downloaded
from build_matrix.toolchain.cache import State, ToolchainCache
from build_matrix.toolchain.traffic import Traffic
from hub_loader.errors import CacheError


def make(folder: Path) -> None:
    (folder / "a.h").write_text("a")
    (folder / "b.h").write_text("b")


@pytest.mark.parametrize(
    "damage",
    [
        lambda part: (part / "a.h").write_text("A"),
        lambda part: (part / "a.h").unlink(),
        lambda part: (part / "c.h").touch(),
        lambda part: (part / "a.h").rename(part / "d.h"),
    ],
    ids=["changed", "lost", "added", "renamed"],
)
def test_verify_of_a_part_whose_file_was_touched_calls_that_part_damaged(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    cache = ToolchainCache(tmp_path)
    part, other = cache.provide("part-1.0", "key", make), cache.provide("part-2.0", "key", make)
    (tmp_path / "objects").mkdir()
    assert dict(cache.verify()) == {part.name: State.WHOLE, other.name: State.WHOLE}
    damage(part)
    assert dict(cache.verify()) == {part.name: State.DAMAGED, other.name: State.WHOLE}
    cache.remove(part.name)
    assert dict(cache.verify()) == {other.name: State.WHOLE}
    assert not list(tmp_path.glob(".tmp-*"))
    assert sorted(path.name for path in cache.provide("part-1.0", "key", make).iterdir()) == ["a.h", "b.h"]


def khub_verify(root: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from hub_loader.cli import main; raise SystemExit(main())"]
    environment = {**os.environ, "KHUB_TOOLCHAINS": str(root)}
    done = subprocess.run(
        [*command, "matrix", "verify", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done


def test_khub_matrix_verify_names_what_is_damaged_and_repair_removes_it(tmp_path: Path) -> None:
    cache = ToolchainCache(tmp_path)
    part, old = cache.provide("part-1.0", "key", make), cache.provide("part-0.9", "key", make)
    (tmp_path / f"{old.name}.sha256").unlink()
    assert f"unknown  {old.name}" in khub_verify(tmp_path).stdout
    (part / "a.h").write_text("A")
    done = khub_verify(tmp_path, code=CacheError.exit_code)
    assert f"damaged  {part.name}" in done.stdout
    assert part.name in done.stderr and "--repair" in done.stderr
    data = json.loads(khub_verify(tmp_path, "--json", code=CacheError.exit_code).stdout)
    assert data == {"parts": {part.name: "damaged", old.name: "unknown"}, "removed": []}
    assert f"damaged  removed {part.name}" in khub_verify(tmp_path, "--repair").stdout
    assert "0 of 0 parts" in khub_verify(tmp_path).stdout


def test_khub_matrix_repair_without_verify_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from hub_loader.cli import main; raise SystemExit(main())"]
    done = subprocess.run([*command, "matrix", "--repair"], capture_output=True, text=True)
    assert (done.returncode, "--repair belongs to" in done.stderr) == (2, True)


def test_downloaded_says_the_total_and_torchs_headers_and_nothing_when_nothing_came() -> None:
    traffic, out = Traffic(), io.StringIO()
    Console(out, {}).downloaded(traffic)
    assert out.getvalue() == ""
    traffic.count("cuda")(26_100_000)
    assert downloaded(traffic) == "downloaded 26.1 MB"
    traffic.count("torch")(12_100_000)
    Console(out, {}).downloaded(traffic)
    assert out.getvalue() == "  downloaded 38.2 MB (torch headers 12.1 MB)\n"
