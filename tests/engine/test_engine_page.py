"""docs/engine.md: its commands run, its core is all there and small."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
LIMIT = 1500
MAIN = "import sys; from hub_loader.cli import main; sys.exit(main())"


@pytest.mark.heavy
def test_commands_of_the_page_run(tmp_path: Path) -> None:
    block = re.search(
        r"<!-- executed by tests/engine/test_engine_page.py -->\n```sh\n(.*?)```", PAGE, re.DOTALL
    )
    assert block
    for line in block[1].splitlines():
        command = shlex.split(line)
        assert command[0] == "khub"
        arguments = [str(ROOT / word) if word.startswith("engine/") else word for word in command[1:]]
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "tok/s" in done.stdout
    assert (tmp_path / "bench.svg").is_file()


def test_page_has_a_paragraph_for_each_file_of_the_engine() -> None:
    files = {path.name for path in (ROOT / "engine").glob("*.py")} - {"__init__.py", "cli.py", "progress.py"}
    assert files == set(re.findall(r"\*\*\[(\w+\.py)\]\(\.\./engine/\1\)\*\*", PAGE))


def test_core_is_short_enough_to_read() -> None:
    core = PAGE.partition("## One request")[2].partition("## The kernels")[0]
    files = re.findall(r"^\*\*\[(\w+\.py)\]", core, re.MULTILINE)
    lines = {name: len((ROOT / "engine" / name).read_text().splitlines()) for name in files}
    assert len(lines) == 8
    assert sum(lines.values()) <= LIMIT, lines
