"""The loader's benchmark, in its smallest form: what it counts, not how long it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hub_loader"))
from packages import python_package

ROOT = Path(__file__).parents[2]

CASES = {
    f"{c}, {a}, {latency}"
    for c in ("cold", "warm", "loaded")
    for a in ("version=1", "revision=<commit>")
    for latency in ("0 ms", "50 ms", "50 ms and handshakes")
}
IMPORTS = {"import X", "from X import get_kernel"}
INSTALLS = {"install kernel", "install large"}


@pytest.mark.heavy
def test_loader_benchmark_measures_both_clients_and_counts_what_they_ask(tmp_path: Path) -> None:
    package = python_package(tmp_path / "package", variants=("torch-universal",)).folder
    files = sum(path.is_file() for path in package.glob("build/*/**/*"))
    command = [sys.executable, ROOT / "benchmarks" / "loader.py", "--repeat", "1", "--large-mb", "40"]
    command += ["--package", package, "--venv", tmp_path / "venv", "--json", tmp_path / "out" / "loader.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "loader.json").read_bytes())
    assert {"machine", "versions", "commit", "dirty", "large_bytes", "results"} == report.keys()
    assert report["versions"]["kernels"] == "0.17.2"
    results = report["results"]
    assert results.keys() == CASES | IMPORTS | INSTALLS
    for name, row in results.items():
        assert row.keys() == {"hub_loader", "kernels", "ratios"}
        assert row["hub_loader"].keys() == row["kernels"].keys()
        assert name in done.stdout
        for client in ("hub_loader", "kernels"):
            for spread in row[client].values():
                assert spread["min"] <= spread["median"] <= spread["max"]
    for ask in ("version=1", "revision=<commit>"):
        ours = {case: results[f"{case}, {ask}, 50 ms"]["hub_loader"] for case in ("cold", "warm", "loaded")}
        assert ours["cold"]["requests"]["max"] == 2 + files  # index and signature, asked for at once
        assert ours["cold"]["depth"]["max"] <= 3
        assert ours["warm"]["requests"]["max"] == ours["loaded"]["requests"]["max"] == 0
        assert results[f"cold, {ask}, 50 ms"]["kernels"]["requests"]["min"] > 1 + files
    small, large = (results[name]["hub_loader"]["peak_bytes"]["median"] for name in sorted(INSTALLS))
    assert large - small < report["large_bytes"] / 4
