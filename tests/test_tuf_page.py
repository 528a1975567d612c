"""docs/tuf.md: its commands run in order, on one hub."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from khub_process import ROOT

sys.path.insert(0, str(Path(__file__).parent / "hub_loader"))
from packages import python_package

PAGE = (ROOT / "docs" / "tuf.md").read_text()
MARK = re.compile(r"<!-- executed by tests/test_tuf_page.py -->\n```sh\n(.*?)```", re.DOTALL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def install_commands(site: Path) -> None:
    """Let `khub` find the commands that this tree declares, whatever is installed."""
    declared = re.search(
        r'^\[project\.entry-points\."khub\.commands"\]\n(.*?)\n\n',
        (ROOT / "pyproject.toml").read_text(),
        re.M | re.S,
    )
    assert declared is not None
    info = site / "kernel_hub-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernel-hub\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[khub.commands]\n" + declared[1].replace('"', "") + "\n")


@pytest.mark.heavy
def test_commands_of_the_tuf_page_run_in_order(tmp_path: Path) -> None:
    scripts = MARK.findall(PAGE)
    assert len(scripts) == 3
    python_package(
        tmp_path / "dist" / "paged-attention", name="paged-attention", kernel_id="_paged_attention_cpu_1"
    )
    install_commands(tmp_path / "site")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "khub").write_text(f'#!/bin/sh\nexec {sys.executable} -m hub_loader "$@"\n')
    (binaries / "khub").chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KERNELS_"))}
    environment |= {"PATH": f"{binaries}:{os.environ['PATH']}", "HF_HOME": str(tmp_path / "home")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}
    environment |= {"KHUB_TRUST_FILE": str(tmp_path / "trust.json"), "KHUB_REFRESH": "0"}
    port = str(free_port())
    script = "set -e\ntrap 'kill %1' EXIT\n" + "\n".join(scripts).replace("8000", port)
    ready = f"until curl -sf -o /dev/null http://127.0.0.1:{port}/readyz; do sleep 0.1; done"
    done = subprocess.run(
        ["bash", "-m", "-c", script.replace("sleep 3", ready)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in version 1 of the TUF targets" in done.stdout
    assert "version 3 of its targets is signed" in done.stdout
    assert "Traceback" not in done.stderr
