"""What a benchmark says about the times it was given, and what it asks of everybody."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine import LLM, SamplingParams
from engine.bench.metrics import Run, figures, percentile
from engine.bench.report import Outcome, format_table, to_json, write_plot
from engine.bench.shapes import SHAPES, write_model
from engine.bench.workloads import WORKLOADS, Sizes, lengths, longest, make_workload
from hub_loader.errors import UsageError

RUN = Run(
    version="1",
    times=((0.5, 1.0, 2.0), (1.0, 2.0)),
    tokens=((1, 2, 3), (4, 5)),
    kv_waste=0.25,
    peak_memory=3 * 2**20,
    cpu_seconds=2.0,
    load_seconds=1.0,
)


def test_figures_of_a_run_are_what_its_times_say() -> None:
    found = figures([RUN])
    assert found.tokens_per_second == 2.5  # five tokens in two seconds
    assert found.first_token == 0.75
    assert (found.gap_p50, found.gap_p99) == (1.0, 1.0)  # of 0.5, 1, 1
    assert (found.kv_waste, found.peak_memory) == (0.25, 3 * 2**20)


def test_figures_of_rounds_are_their_medians() -> None:
    slow = replace(RUN, times=((1.0, 2.0, 10.0), (1.0, 2.0)), kv_waste=None)
    fast = replace(RUN, times=((0.1, 0.2, 0.5), (0.1, 0.2)))
    assert figures([RUN, slow, fast]).tokens_per_second == 2.5
    assert figures([slow]).kv_waste is None


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 2.0), (99, 4.0), (0, 1.0), (75, 3.0), (76, 4.0), (100, 4.0)]
)
def test_percentile_is_the_smallest_value_that_so_many_do_not_exceed(percent: float, expected: float) -> None:
    assert percentile([3.0, 1.0, 4.0, 2.0], percent) == expected
    assert percentile([], percent) == 0.0


def test_report_compares_with_the_first_contestant_of_the_workload(tmp_path: Path) -> None:
    half = replace(RUN, times=((1.0, 2.0, 4.0), (2.0, 4.0)), tokens=((1, 2, 3), (4, 6)), kv_waste=None)
    outcomes = [Outcome("fixed", "ours", (RUN,)), Outcome("fixed", "peer", (half,))]
    header, ours, peer = format_table(outcomes).splitlines()
    assert header.split()[:2] == ["fixed", "tok/s"]
    assert " ".join(ours.split()) == "ours 1 2.5 750 ms 1000.0 ms 1000.0 ms 25.0% 3 MiB 1.00x 100%"
    assert " ".join(peer.split()) == "peer 1 1.2 1500 ms 2000.0 ms 2000.0 ms - 3 MiB 2.00x 50%"
    data = json.loads(json.dumps(to_json(outcomes, {"requests": 2})))
    assert [r["ours_over_this"] for r in data["results"]] == [1.0, 2.0]
    assert data["results"][1]["rounds"][0]["first_token"] == 1.5
    for name, start in (("bars.png", b"\x89PNG"), ("bars.svg", b"<?xml")):
        write_plot(outcomes, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_the_same_each_time_and_of_the_sizes_asked_for(name: str) -> None:
    sizes = Sizes(requests=20, inputs=40, outputs=10, prefix=30)
    workload = make_workload(name, sizes, 512, seed=3)
    assert workload == make_workload(name, sizes, 512, seed=3)
    assert workload != make_workload(name, sizes, 512, seed=4)
    assert len(workload.requests) == 20
    assert all(0 <= t < 512 for request in workload.requests for t in request.tokens)
    with pytest.raises(UsageError, match="inputs is 0"):
        make_workload(name, replace(sizes, inputs=0), 512)


def test_fixed_requests_have_equal_lengths_and_mixed_ones_the_means_asked_for() -> None:
    workload = make_workload("fixed", Sizes(5, 40, 10), 512)
    assert {(len(r.tokens), r.max_tokens) for r in workload.requests} == {(40, 10)}
    assert longest(workload) == 50
    mixed = make_workload("mix", Sizes(4000, 160, 330), 512).requests
    inputs = [len(request.tokens) for request in mixed]
    outputs = [request.max_tokens for request in mixed]
    assert sum(inputs) / len(inputs) == pytest.approx(160, rel=0.1)
    assert sum(outputs) / len(outputs) == pytest.approx(330, rel=0.1)
    assert len(set(inputs)) > 200
    assert min(inputs) >= 4
    assert max(inputs) <= 8 * 160


def test_uniform_requests_have_every_length_from_a_tenth_up() -> None:
    requests = make_workload("uniform", Sizes(2000, 50, 20), 512).requests
    assert {len(request.tokens) for request in requests} == set(range(5, 51))
    assert {request.max_tokens for request in requests} == set(range(2, 21))
    assert sum(lengths(make_workload("uniform", Sizes(3, 9, 9), 512))) <= 3 * 18


def test_shared_requests_begin_alike_and_one_has_been_there_before() -> None:
    workload = make_workload("shared", Sizes(requests=6, inputs=16, outputs=4, prefix=64), 512)
    prefixes = {request.tokens[:64] for request in (*workload.requests, workload.before[-1])}
    assert len(prefixes) == 1
    assert len({request.tokens[64:] for request in workload.requests}) == 6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_of_a_shape_loads_and_generates(tmp_path: Path, dtype: str) -> None:
    write_model(tmp_path, "qwen3-tiny", dtype)
    llm = LLM(tmp_path, dtype=dtype)
    (completion,) = llm.generate(["5 6 7"], SamplingParams(max_tokens=5, ignore_stop=True))
    assert completion.prompt_tokens == (5, 6, 7)
    assert completion.text.split() == [str(token) for token in completion.tokens]
    assert llm._model.dtype is getattr(torch, dtype)


def test_a_model_of_an_unknown_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected one of qwen3-0.6b"):
        write_model(tmp_path, "qwen9", "float32")
    assert SHAPES["qwen3-0.6b"]["num_hidden_layers"] == 28
