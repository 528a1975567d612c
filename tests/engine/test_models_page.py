"""docs/models.md: every command in it runs, and it names every format."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engine.engine import FORMATS
from engine.quant.gguf_blocks import BLOCKS
from engine.quant.scheme import LAYOUTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text()
SCRIPT = PAGE.split("<!-- executed by tests/engine/test_models_page.py -->\n```sh\n")[1].split("```")[0]
MAIN = "import sys; from hub_loader.cli import main; sys.exit(main())"


@pytest.mark.slow
@pytest.mark.parametrize("line", SCRIPT.splitlines())
def test_command_of_the_page_runs(line: str) -> None:
    khub, *arguments = shlex.split(line)
    assert khub == "khub"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def main():")


def test_page_names_every_format_that_is_read() -> None:
    assert [name for name in (*BLOCKS, *LAYOUTS, *FORMATS) if name not in PAGE] == []
