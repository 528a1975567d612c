"""docs/serve.md: its commands run, its options and metrics exist."""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from khub_process import ROOT
from serving import Server

from engine.cli import add_engine

PAGE = (ROOT / "docs" / "serve.md").read_text()


@pytest.mark.slow
def test_commands_of_the_page_run_in_order(tmp_path: Path) -> None:
    script = re.search(
        r"<!-- executed by tests/engine/test_serve_page_of_docs.py -->\n```sh\n(.*?)```", PAGE, re.DOTALL
    )
    assert script is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (tmp_path / "engine").symlink_to(ROOT / "engine")
    khub = tmp_path / "khub"
    khub.write_text(f'#!/bin/sh\nexec {sys.executable} -m hub_loader "$@"\n')
    khub.chmod(0o755)
    done = subprocess.run(
        [
            "bash",
            "-m",
            "-c",
            "set -e\ntrap 'kill %1 2>/dev/null || true' EXIT\n" + script[1].replace("8000", port),
        ],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data: [DONE]" in done.stdout
    assert '"object":"embedding"' in done.stdout
    assert re.search(r"vllm:generation_tokens_total\{.*\} [1-9]\d*\.0$", done.stdout, re.MULTILINE)


def test_options_that_the_page_names_exist() -> None:
    parser = argparse.ArgumentParser()
    add_engine(parser)
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        written: list[str] = []
        patch.setattr(sys.stdout, "write", written.append)
        parser.parse_args(["serve", "--help"])
    known = set(re.findall(r"--[a-z-]+", "".join(written)))
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= known


def test_metrics_that_the_page_names_are_exposed(server: Server) -> None:
    server.openai().completions.create(model="stdlib-llama", prompt="x", max_tokens=1)
    for name in re.findall(r"`(vllm:[a-z_]+)`", PAGE):
        suffix = "_bucket" if name.endswith(("_seconds", "_tokens", "_n")) else ""
        server.metric(name + suffix)


def test_links_of_the_page_point_to_files_that_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in link]
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
