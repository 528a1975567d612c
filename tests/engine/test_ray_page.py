"""docs/serve.md, "On a cluster": its commands run."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from khub_process import ROOT

pytest.importorskip("ray.serve", reason="pip install 'kernel-hub[ray]'")


@pytest.mark.heavy
def test_commands_of_the_clusters_section_run_in_order(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "serve.md").read_text()
    found = re.search(r"<!-- executed by tests/engine/test_ray_page.py -->\n```sh\n(.*?)```", page, re.DOTALL)
    assert found is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        script = found[1].replace("8000", str(probe.getsockname()[1]))
    (tmp_path / "engine").symlink_to(ROOT / "engine")
    khub = tmp_path / "khub"
    khub.write_text(f'#!/bin/sh\nexec {sys.executable} -m hub_loader "$@"\n')
    khub.chmod(0o755)
    done = subprocess.run(
        ["bash", "-m", "-c", f"set -e\ntrap 'kill %1 2>/dev/null || true' EXIT\n{script}"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "def main():" not in done.stderr  # prompts are nobody's business
    assert '"finish_reason":"length"' in done.stdout
    assert "khub_engine_replicas 2.0" in done.stdout
