"""README: every command in it runs, every file it points to exists."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_links_of_readme_point_to_files_that_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_targets_that_readme_names_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = README + (ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"\bmake (?:TORCH=\S+ )?(\w+)", pages)) <= targets


@pytest.mark.slow
def test_commands_of_readme_by_hand_run_in_order(tmp_path: Path) -> None:
    script = README.split("<!-- executed by tests/test_readme.py -->\n```sh\n")[1].split("```")[0]
    for name in ("kernels_src", "engine"):
        (tmp_path / name).symlink_to(ROOT / name)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, arguments in (("python", ""), ("khub", "-m hub_loader ")):
        command = binaries / name  # not a link: Python would take the link's folder for its environment
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments}"$@"\n')
        command.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KERNELS_"))}
    environment |= {"PATH": f"{binaries}:{os.environ['PATH']}", "HF_HOME": str(tmp_path / "home")}
    environment |= {"PYTHONPATH": str(ROOT), "KHUB_TRUST_FILE": str(tmp_path / "trust.json")}
    script = "set -e\ntrap 'kill %1' EXIT\n" + script.replace("8000", str(free_port()))
    done = subprocess.run(
        ["bash", "-m", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "keeps its promises" in done.stdout
    assert "chosen" in done.stdout
    assert "reshape_and_cache_flash" in done.stdout.splitlines()[-1]
