"""The benchmark of engines runs `khub engine bench` for each case and keeps the figures of the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "engines.py"


@pytest.mark.slow
def test_engines_benchmark_keeps_cases_that_are_not_run_and_says_which_peer_is_not_named(
    tmp_path: Path,
) -> None:
    kept = tmp_path / "engines.json"
    kept.write_text(json.dumps({"results": {"8 requests, float32": {"results": []}}}))
    command = [sys.executable, PROGRAM, "--case", "1 request, int4", "--shape", "qwen3-tiny", "--rounds", "2"]
    command += ["--json", kept, "--", "--inputs", "8", "--outputs", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 request, int4: without llama.cpp, as no interpreter was named" in done.stderr
    results = json.loads(kept.read_text())["results"]
    assert list(results) == ["8 requests, float32", "1 request, int4"]
    assert results["8 requests, float32"] == {"results": []}
    (ours,) = results["1 request, int4"]["results"]
    assert ours["contestant"] == "kernel-hub"
    assert len(ours["rounds"]) == 2
    assert ours["tokens_per_second"] > 0
    assert f"kernel-hub {ours['version']}" in done.stdout


@pytest.mark.slow
def test_engines_benchmark_on_a_gpu_has_cases_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, PROGRAM, "--device", "cuda", "--json", tmp_path / "engines.json"]
    done = subprocess.run([*command, "--case", "1 request, int4"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "'1 request, int4' is no case of --device cuda" in done.stderr
    kept = tmp_path / "cpu.json"
    kept.write_text(json.dumps({"results": {"1 request, int4": {"results": []}}}))
    done = subprocess.run([*command[:4], "--json", kept], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{kept} holds '1 request, int4', of another --device" in done.stderr
    case = ["--case", "256 requests, bfloat16, rotary in torch", "--shape", "qwen3-tiny", "--rounds", "1"]
    small = ["--", "--requests", "2", "--inputs", "20", "--outputs", "4"]
    done = subprocess.run([*command, *case, *small], capture_output=True, text=True)
    if torch.cuda.is_available():
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert "sees 0 CUDA devices" in done.stderr
        assert not (tmp_path / "engines.json").exists()
