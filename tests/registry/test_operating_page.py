"""docs/operations.md: its commands run in order, its metrics are those there are, its links lead somewhere."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from khub_process import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()
SCRIPTS = re.findall(
    r"<!-- executed by tests/registry/test_operating_page.py -->\n```sh\n(.*?)```", PAGE, re.DOTALL
)


def run(script: str, folder: Path) -> str:
    """Run a script of the page on a free port; returns what it printed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    khub = folder / "khub"
    khub.write_text(f'#!/bin/sh\nexec {sys.executable} -m hub_loader "$@"\n')
    khub.chmod(0o755)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "KHUB_", "OTEL_"))
    }
    done = subprocess.run(
        ["bash", "-ec", script.replace("8000", str(port))],
        cwd=folder,
        env=kept
        | {"PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_first_commands_of_the_operations_page_run_and_its_metrics_are_those_exposed(tmp_path: Path) -> None:
    printed = run(SCRIPTS[0], tmp_path)
    assert '{"ready":true,"reasons":[]}ok' in printed and '"request_id": "deploy-1"' in printed
    exposed = re.findall(r"^# TYPE (khub_\w+) (\w+)$", (tmp_path / "metrics.txt").read_text(), re.MULTILINE)
    names = {name for name, _ in exposed if not name.endswith("_created")}
    assert set(re.findall(r"^\| `(khub_\w+)` \|", PAGE, re.MULTILINE)) == names


@pytest.mark.heavy
@pytest.mark.parametrize("script", SCRIPTS[1:], ids=["traces", "workers", "proxy"])
def test_further_commands_of_the_operations_page_run_in_order(script: str, tmp_path: Path) -> None:
    run(script, tmp_path)


def test_commands_of_the_operations_page_are_all_executed() -> None:
    assert len(SCRIPTS) == PAGE.count("```sh") == 4


def test_links_of_the_operations_page_point_to_files_that_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link]
    assert links and [link for link in links if not (ROOT / "docs" / link).exists()] == []
