"""docs/registry-operations.md: what it tells operators to type runs, in the order of the page."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from khub_process import ROOT

PAGE = (ROOT / "docs" / "registry-operations.md").read_text()
PLACES = ("postgresql://khub:secret@db.example/hub", "s3://kernels/hub")


def script(name: str) -> str:
    marker = f"<!-- executed by tests/registry/test_operations_page.py: {name} -->\n```sh\n"
    return PAGE.split(marker)[1].split("```")[0]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run(folder: Path, text: str, database: str, storage: str) -> str:
    """The script's output, with an installation that is there already and a company's addresses that are ours."""
    installs = re.findall(r"^pip install '(.*)'$", text, re.MULTILINE)
    assert set(installs) <= {"kernel-hub[registry]", "kernel-hub[registry-postgres]"}
    text = re.sub(r"^pip install .*$", "", text, flags=re.MULTILINE)
    for written, ours in zip(PLACES, (database, storage), strict=True):
        text = text.replace(written, ours)
    ready = []  # instead of the page's seconds, which a busy machine may exceed
    for written in {"8000", "8001"} & set(re.findall(r"--port (\d+)", text)):
        port = free_port()
        text = text.replace(written, port)
        ready.append(f"until curl -sf -o /dev/null http://127.0.0.1:{port}/readyz; do sleep 0.1; done")
    text = re.sub(r"^sleep \d+$", "\n".join(ready), text, flags=re.MULTILINE)
    binaries = folder / "bin"
    binaries.mkdir(exist_ok=True)
    (binaries / "khub").write_text(f'#!/bin/sh\nexec {sys.executable} -m hub_loader "$@"\n')
    (binaries / "khub").chmod(0o755)
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-m", "-e", "-c", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.heavy
def test_commands_of_the_operations_page_run_in_order(tmp_path: Path, postgres_url: str, s3_url: str) -> None:
    output = run(tmp_path, script("folder"), postgres_url, s3_url)
    assert "khub_" in output and ": 0 problems." in output
    moved = run(tmp_path, script("move"), postgres_url, s3_url)
    assert "Restored" in moved and ": 0 problems." in moved
    shared = run(tmp_path, script("shared"), postgres_url, s3_url)
    assert shared.count("Kernel Hub serves") == 2 and ": 0 problems." in shared


def test_every_command_of_the_operations_page_is_in_a_block_that_is_executed() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    assert blocks == [script(name) for name in ("folder", "shared", "move")]
