"""The commands of docs/speculation.md run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "speculation.md").read_text(encoding="utf-8")
[BLOCK] = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = BLOCK.replace("\\\n", " ").strip().splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_run_and_say_what_speculation_brought(command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "khub"
    done = subprocess.run(
        [sys.executable, "-m", "hub_loader", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("class Handler:")
    assert re.search(r"speculation: [1-9]\.\d\d tokens a step", done.stderr)
