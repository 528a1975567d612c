"""The benchmark of speculation, in its smallest form: what it counts, not how long it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_speculation_benchmark_compares_chains_and_trees_of_equal_budget_with_plain_decoding(
    tmp_path: Path,
) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "speculation.py", "--rounds", "1", "--tokens", "16"]
    done = subprocess.run(
        [*command, "--budgets", "4", "--temperatures", "0", "--json", tmp_path / "out.json"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_bytes())
    assert {"machine", "commit", "dirty", "prompts", "rows"} == report.keys()
    rows = {row["speculate"]: row for row in report["rows"]}
    assert list(rows) == ["nothing", "ngram:4", "draft:DRAFT:4", "tree:DRAFT:4", "tree:DRAFT:4:1"]
    assert (rows["nothing"]["tokens_per_step"], rows["nothing"]["acceptance_length"]) == (1.0, 0.0)
    assert rows["draft:DRAFT:4"]["acceptance_length"] <= 4
    assert rows["tree:DRAFT:4"]["acceptance_length"] <= 2, "as deep as half of its nodes"
    assert rows["tree:DRAFT:4:1"]["acceptance_length"] <= 1
    assert all(row["tokens_per_second"] > 0 for row in rows.values())
