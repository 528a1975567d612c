"""docs/performance.md is what the measured results say, and what a probe of the machine counts."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


# By its file: that folder on the path would hide the package `registry` behind the benchmark of this name.
def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


performance = load("performance")

ROW = {
    "name": "matmul int4",
    "shape": "512 × 4096 × 4096",
    "dtype": "bfloat16",
    "kernel_us": [1500.4, 1400.0, 1600.0],
    "giga_per_second": 71.26,
    "ratio": 0.5,
    "against": "fma",
    "percent": 72.4,
    "other_ratios": {"vllm": 1.239, "llama.cpp": 0.911},
    "failed": {"gemlite": "relative error 1.0e+00"},
}
MEASURED = {
    "environment": {"device": "a CPU", "threads": 2, "torch": "2.13.0", "peers": {"liger": "not here"}},
    "results": [ROW],
}


def test_performance_page_is_that_of_the_results() -> None:
    assert performance.PAGE.read_text() == performance.whole()


def test_range_of_the_kernels_in_readme_is_what_was_measured() -> None:
    text = performance.README.read_text()
    assert performance.readme(text) == text
    assert "int8 products: 7x to 8x of torch eager" in re.sub(r"\d\S+x to \d+x", "7x to 8x", text)


def test_performance_page_has_a_row_for_each_result() -> None:
    row = "| matmul int4 | 512 × 4096 × 4096 | bfloat16 | 1,500 µs | 71.3 GFLOP/s | fma | 72 % | 0.50x |"
    assert f"{row} vllm 1.24x, llama.cpp 0.91x |" in performance.page(MEASURED).splitlines()


def test_performance_page_says_which_peers_there_were_and_which_failed() -> None:
    lines = performance.page(MEASURED).splitlines()
    assert "- liger: not here" in lines
    assert "- gemlite left out of matmul int4, 512 × 4096 × 4096, bfloat16: relative error 1.0e+00" in lines


def test_performance_page_names_each_call_that_is_slower_than_its_peer() -> None:
    line = "- matmul int4, 512 × 4096 × 4096, bfloat16: 0.50x of its peer, 0.91x of llama.cpp"
    assert line in performance.page(MEASURED).splitlines()
    quick = MEASURED | {"results": [ROW | {"ratio": 1.5, "other_ratios": {}}]}
    assert "Nothing here is slower than a peer." in performance.page(quick)


def test_performance_page_has_a_row_for_each_engine() -> None:
    result = {"contestant": "vllm", "version": "0.32.0", "tokens_per_second": 18.46, "first_token": 8.285}
    result |= {"gap_p50": 0.297, "kv_waste": 0.0222, "rounds": [{}, {}], "ours_over_this": 1.36}
    row = "| 8 requests | vllm 0.32.0 | 18.5 | 8,285 ms | 297 ms | 2.2 % | 2 | 1.36x |"
    assert row in performance.engines({"results": {"8 requests": {"results": [result]}}}).splitlines()


@pytest.mark.slow
def test_probes_of_the_machine_run_and_say_what_they_move() -> None:
    machine = load("_machine").probes(2)
    assert set(machine) == {"read", "copy", "fma"}
    total, _ = machine["read"].run()
    assert total == pytest.approx(1 << 26)
    for probe in machine.values():
        probe.run()
        assert probe.work > 0
