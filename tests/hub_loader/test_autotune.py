"""Choosing the fastest: by medians of an injected clock, remembered for what it depends on, never by real time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hub_loader import NoMatchingVariantError, UsageError
from hub_loader.autotune import Fastest, Timer, clock_timer, measure
from hub_loader.verdicts import describe_arguments, report


class Bench:
    """Candidates that take the seconds stated of each call in turn (the last again and again), by a clock of ours."""

    def __init__(self, **seconds: list[float]) -> None:
        self.now, self.calls = 0.0, dict.fromkeys(seconds, 0)
        self.candidates = {name: self._candidate(name, list(taken)) for name, taken in seconds.items()}

    def _candidate(self, name: str, seconds: list[float]) -> Callable[..., str]:
        def call(*args: object, **kwargs: object) -> str:
            taken = seconds[min(self.calls[name], len(seconds) - 1)]
            self.calls[name] += 1
            if taken < 0:
                raise RuntimeError(f"{name} has no kernel image")
            self.now += taken
            return name

        return call

    @property
    def timer(self) -> Timer:
        return clock_timer(lambda: self.now)

    def fastest(self, cache: Path, **options: object) -> Fastest:
        ids = dict.fromkeys(self.candidates, "1")
        return Fastest(self.candidates, cache=cache, timer=self.timer, **{"ids": ids, **options})  # type: ignore[arg-type]


def test_fastest_then_takes_the_smallest_median_and_not_the_smallest_time(tmp_path: Path) -> None:
    bench = Bench(steady=[2.0], lucky=[9.0, 1.0, 9.0, 9.0, 1.0, 9.0])
    fastest = bench.fastest(tmp_path, warm_up=1, repeats=5)
    assert fastest(torch.ones(2, 3)) == "steady"
    verdict = fastest.verdict(torch.ones(2, 3))
    assert (verdict.chosen, verdict.seconds, verdict.failed) == ("steady", {"steady": 2.0, "lucky": 9.0}, {})
    assert bench.calls == {"steady": 1 + 5 + 1, "lucky": 1 + 5}


def test_fastest_when_the_first_calls_are_slow_then_they_do_not_count(tmp_path: Path) -> None:
    bench = Bench(compiled=[100.0, 100.0, 1.0], plain=[2.0])
    assert bench.fastest(tmp_path, warm_up=2, repeats=1)() == "compiled"


def test_fastest_when_medians_are_equal_then_takes_the_first_candidate(tmp_path: Path) -> None:
    assert Bench(first=[1.0], second=[1.0]).fastest(tmp_path / "a")() == "first"
    assert Bench(second=[1.0], first=[1.0]).fastest(tmp_path / "b")() == "second"


def test_fastest_then_times_each_shape_once_and_another_process_not_at_all(tmp_path: Path) -> None:
    bench = Bench(a=[1.0], b=[2.0])
    fastest = bench.fastest(tmp_path, warm_up=0, repeats=1)
    for tensor in (torch.ones(2), torch.zeros(2), torch.ones(3), torch.ones(2)):
        fastest(tensor)
    assert bench.calls == {"a": 4 + 2, "b": 2}
    assert [verdict.remembered for verdict in fastest.verdicts()] == [False, False]

    again = Bench(a=[5.0], b=[2.0])
    later = again.fastest(tmp_path, warm_up=0, repeats=1)
    assert later(torch.ones(2)) == "a"
    assert again.calls == {"a": 1, "b": 0}
    (verdict,) = later.verdicts()
    assert verdict.remembered
    assert verdict.seconds == {"a": 1.0, "b": 2.0}
    assert report(verdict).endswith("a 1000000.0 µs, b 2000000.0 µs (remembered)")


@pytest.mark.parametrize(
    "argument",
    [
        torch.ones(3, 2),
        torch.ones(2, 3, dtype=torch.float64),
        torch.ones(3, 2).T,
        [torch.ones(2, 3)],
        torch.float16,
        None,
        7,
    ],
    ids=str,
)
def test_fastest_when_an_argument_is_of_another_kind_then_it_is_timed_anew(
    tmp_path: Path, argument: object
) -> None:
    bench = Bench(a=[1.0], b=[2.0])
    fastest = bench.fastest(tmp_path)
    fastest(torch.ones(2, 3))
    fastest(argument)
    fastest(torch.ones(2, 3), scale=argument)
    assert [verdict.remembered for verdict in fastest.verdicts()] == [False] * 3


def test_fastest_when_a_kernel_is_rebuilt_then_it_is_timed_anew(tmp_path: Path) -> None:
    assert Bench(a=[1.0], b=[2.0]).fastest(tmp_path)() == "a"
    assert Bench(a=[3.0], b=[2.0]).fastest(tmp_path, ids={"a": "2", "b": "1"})() == "b"


def test_fastest_when_a_candidate_cannot_run_then_it_is_reported_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(broken=[-1.0], working=[2.0], late=[1.0, 1.0, 1.0, 1.0, -1.0])
    with caplog.at_level(logging.INFO, "hub_loader"):
        assert bench.fastest(tmp_path)() == "working"
    (record,) = caplog.records
    assert "broken failed: RuntimeError: broken has no kernel image" in record.message
    assert "late failed: RuntimeError" in record.message
    assert bench.calls["broken"] == 1


def test_fastest_when_no_candidate_runs_then_names_each_error_and_remembers_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        NoMatchingVariantError, match="a: RuntimeError: a has no kernel image; b: RuntimeError"
    ):
        Bench(a=[-1.0], b=[-1.0]).fastest(tmp_path)()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"chosen": "c", "seconds": {}, "failed": {}, "key": {}}', None]
)
def test_fastest_when_a_verdict_on_disk_is_not_for_this_then_it_is_timed_anew(
    tmp_path: Path, content: str | None
) -> None:
    assert Bench(a=[1.0], b=[2.0]).fastest(tmp_path)() == "a"
    (file,) = (tmp_path / "autotune").iterdir()
    if content is None:  # a verdict for another device under this name
        content = json.dumps({**json.loads(file.read_text()), "key": {"device": "another"}})
    file.write_text(content)
    assert Bench(a=[3.0], b=[2.0]).fastest(tmp_path)() == "b"
    assert json.loads(file.read_text())["chosen"] == "b"


def test_fastest_when_the_cache_cannot_be_written_then_still_answers_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "autotune").write_text("a file where the folder would be")
    assert Bench(a=[1.0], b=[2.0]).fastest(tmp_path)() == "a"
    assert "cannot be written" in caplog.text


def test_fastest_when_candidates_write_to_their_inputs_then_prepare_gives_each_call_its_own(
    tmp_path: Path,
) -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)

    fastest = Fastest(
        {"double": double},
        ids={"double": "1"},
        cache=tmp_path,
        prepare=lambda args, kwargs: ([x.clone() for x in args], kwargs),
    )
    assert torch.equal(fastest(torch.ones(2)), torch.full((2,), 2.0))


def test_fastest_without_a_timer_uses_a_clock_on_the_cpu_and_reports_the_device(tmp_path: Path) -> None:
    fastest = Fastest({"add": torch.add}, ids={"add": "torch"}, cache=tmp_path)
    assert torch.equal(fastest(torch.ones(2), torch.ones(2), alpha=2), torch.full((2,), 3.0))
    (verdict,) = fastest.verdicts()
    assert verdict.key["torch"] == torch.__version__
    assert verdict.key["device"]
    assert report(verdict).startswith(f"fastest on {verdict.key['device']}: add ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fastest_on_a_gpu_times_with_events_and_names_the_gpu(tmp_path: Path) -> None:
    x = torch.ones(1024, 1024, device="cuda")
    fastest = Fastest(
        {"once": lambda x: x @ x, "often": lambda x: x @ x @ x @ x @ x @ x},
        ids={"once": "1", "often": "1"},
        cache=tmp_path,
    )
    fastest(x)
    (verdict,) = fastest.verdicts()
    assert torch.cuda.get_device_name() in verdict.key["device"]
    assert all(seconds > 0 for seconds in verdict.seconds.values())


def test_fastest_when_candidates_and_ids_do_not_match_then_usage_error(tmp_path: Path) -> None:
    for candidates, ids in (({}, {}), ({"a": print}, {"b": "1"})):
        with pytest.raises(UsageError):
            Fastest(candidates, ids=ids, cache=tmp_path)


@given(st.lists(st.lists(st.integers(1, 9).map(float), min_size=3, max_size=3), min_size=1, max_size=5))
def test_measure_then_gives_the_median_of_each_whatever_the_order(rows: list[list[float]]) -> None:
    bench = Bench(**{str(number): row for number, row in enumerate(rows)})
    ready = {name: (lambda call=call: call) for name, call in bench.candidates.items()}
    seconds, failed = measure(ready, bench.timer, warm_up=0, repeats=3)
    assert seconds == {str(number): sorted(row)[1] for number, row in enumerate(rows)}
    assert failed == {}


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(_values, max_size=3), st.dictionaries(st.text(max_size=2), _values, max_size=3))
def test_describe_arguments_then_is_hashable_writable_and_of_the_values_alone(
    args: list[object], kwargs: dict[str, object]
) -> None:
    described = describe_arguments(args, kwargs)
    assert hash(described) == hash(describe_arguments(list(args), dict(reversed(kwargs.items()))))
    assert json.loads(json.dumps(described)) is not None
