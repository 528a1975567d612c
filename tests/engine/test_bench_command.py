"""`khub engine bench` and `compare` as processes, on models small enough for every run; here for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine_models import SHIPPED
from khub_process import khub_here

MAIN = "import sys; from hub_loader.cli import main; sys.exit(main())"


def khub_engine(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, "engine", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


SMALL = ("--requests", "3", "--inputs", "12", "--outputs", "6", "--threads", "1")


@pytest.mark.slow
def test_bench_of_a_folder_prints_a_table_and_writes_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "bars.svg"
    result = khub_engine("bench", "--model", SHIPPED, *SMALL, "--plot", picture)
    assert result.returncode == 0, result.stderr
    header, line = result.stdout.splitlines()
    assert header.split()[0] == "fixed"
    assert "KV waste" in header
    assert line.startswith("kernel-hub")
    assert "1.00x" in line
    assert b"tokens/s" in picture.read_bytes()


@pytest.mark.slow
def test_bench_of_shared_prompts_as_json_shows_the_prefix_cache_and_what_it_costs_without() -> None:
    sizes = ("--requests", "3", "--inputs", "8", "--outputs", "3", "--prefix", "600", "--threads", "1")
    result = khub_engine("bench", "--shape", "qwen3-tiny", "--workload", "shared", *sizes, "--json")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert [r["contestant"] for r in data["results"]] == ["kernel-hub", "kernel-hub without prefix cache"]
    assert [r["same_tokens"] for r in data["results"]] == [1.0, 1.0]
    assert all(0 <= r["kv_waste"] < 0.2 for r in data["results"])
    assert data["setting"]["prefix"] == "600"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "give either --model DIR or --shape NAME"),
        (("--model", SHIPPED, "--shape", "qwen3-tiny"), 2, "give either --model DIR or --shape NAME"),
        (("--shape", "qwen9"), 2, "expected one of qwen3-0.6b"),
        (("--model", SHIPPED, "--peer", "ollama"), 2, "expected one of transformers"),
        (("--model", SHIPPED, "--peer", "vllm=/nowhere/python"), 2, "/nowhere/python cannot be run"),
        (("--model", SHIPPED, "--plot", "bars.gif"), 2, "must end in .png or .svg"),
        (("--model", SHIPPED, "--threads", "1000"), 2, "--threads is 1000, expected 1 to"),
        (("--model", SHIPPED, "--requests", "0"), 2, "requests is 0"),
        (("--model", SHIPPED, "--outputs", "2000"), 61, "kernel-hub failed"),
    ],
    ids=["nothing", "both", "shape", "peer", "python", "plot", "threads", "requests", "too-long"],
)
def test_bench_with_bad_input_exits_with_its_code_and_says_why(
    arguments: tuple[str | Path, ...], code: int, words: str
) -> None:
    result = khub_here("engine", "bench", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert words in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_compare_of_torch_with_itself_finds_no_difference_and_shows_both_sides() -> None:
    sides = ("--slot", "norm,rotary", "--with", "torch", "torch")
    sizes = ("--requests", "3", "--inputs", "12", "--outputs", "6", "--rounds", "1")
    result = khub_engine("compare", "--model", SHIPPED, *sides, *sizes, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["largest_logit_difference"], found["same_texts"]) == (0.0, True)
    assert found["compared"] == 3 * 6
    assert [side["source"] for side in found["sides"]] == ["torch", "torch"]
    assert all(side["tokens_per_second"] > 0 for side in found["sides"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--slot", "norms"), "the slots are attention"),
        (("--slot", "norm", "--rounds", "0"), "--rounds is 0"),
        (("--slot", "norm", "--shape", "qwen3-tiny"), "either --model DIR or --shape NAME"),
    ],
    ids=["slot", "rounds", "both"],
)
def test_compare_with_bad_input_says_why_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    result = khub_here("engine", "compare", "--model", SHIPPED, "--with", "torch", "torch", *arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert words in result.stderr


@pytest.mark.slow
def test_compare_of_a_built_kernel_with_torch_prints_speeds_and_a_small_difference(tmp_path: Path) -> None:
    package = Path(os.environ.get("KHUB_KERNEL_BUILD", tmp_path)) / "dense-linear"
    if not package.exists():
        source = Path(__file__).parents[2] / "kernels_src" / "dense-linear"
        select = ("--select", "torch-stable*-cpu-x86_64*")
        build = [sys.executable, "-c", MAIN, "build", source, *select, "--out", package]
        subprocess.run(list(map(str, build)), check=True, capture_output=True)
    sides = ("--slot", "linear", "--with", "torch", package)
    sizes = ("--requests", "2", "--inputs", "8", "--outputs", "4", "--rounds", "1")
    result = khub_engine("compare", "--model", SHIPPED, *sides, *sizes)
    assert result.returncode == 0, result.stderr
    header, plain, built, ratio, difference = result.stdout.splitlines()
    assert header.split()[:2] == ["linear", "tok/s"]
    assert (plain.split()[0], built.split()[0]) == ("torch", str(package))
    assert ratio.endswith("times the tokens of torch")
    assert "every token is the same" in difference
    assert 0 < float(difference.split()[3]) < 1e-3


@pytest.mark.heavy
def test_bench_with_transformers_in_both_ways_gives_everybody_the_same_tokens() -> None:
    peers = ("--peer", "transformers", "--peer", f"transformers-batch={sys.executable}")
    result = khub_engine("bench", "--model", SHIPPED, "--workload", "mix", *SMALL, *peers, "--json")
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout)["results"]
    assert [r["contestant"] for r in results] == ["kernel-hub", "transformers", "transformers-batch"]
    assert [r["same_tokens"] for r in results] == [1.0, 1.0, 1.0]


@pytest.mark.heavy
@pytest.mark.parametrize(("peer", "variable"), [("vllm", "KHUB_VLLM"), ("llama.cpp", "KHUB_LLAMA_CPP")])
def test_bench_with_a_peer_of_another_interpreter_gives_it_the_same_tokens(peer: str, variable: str) -> None:
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no interpreter that has {peer}")
    result = khub_engine("bench", "--shape", "qwen3-tiny", *SMALL, "--peer", f"{peer}={python}", "--json")
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout)["results"]
    assert [r["contestant"] for r in results] == ["kernel-hub", peer]
    assert results[1]["same_tokens"] >= 2 / 3  # random weights: two logits may be nearly equal
