"""The registry's benchmark, in its smallest form: what it counts, not how long it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUESTS = {"256 KB", "commit", "commit of a branch", "small file", "tree"}


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [1, 2])
def test_registry_benchmark_measures_loads_requests_and_memory(tmp_path: Path, workers: int) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "registry.py", "--loads", "4", "--seconds", "20"]
    command += ["--workers", str(workers)]
    done = subprocess.run(
        [*command, "--json", tmp_path / "registry.json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "registry.json").read_bytes())
    assert {"machine", "versions", "commit", "dirty", "server", "results"} <= report.keys()
    rows = report["results"]
    assert rows.keys() == {"cold loads", "cold loads again", *(f"mixed, {name}" for name in REQUESTS)}
    assert rows["cold loads"]["count"] == rows["cold loads again"]["count"] == 4
    for row in rows.values():
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
    assert report["server"]["workers"] == workers
    assert report["server"]["peak_bytes"] > 10_000_000 * workers
