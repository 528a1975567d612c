"""`khub engine serve --ray`: its arguments, what replicas are told, and how many of them there should be."""

from __future__ import annotations

import argparse
import sys
from types import SimpleNamespace

import pytest

from engine.cli import add_engine
from engine.output import Completion
from engine.params import SamplingParams
from engine.server.job import Job
from engine.server_ray.arguments import ClusterOptions, cluster_of
from engine.server_ray.backlog import EXPECTED, queued_tokens, stalled_seconds
from engine.server_ray.policy import ByQueuedTokens
from hub_loader.errors import MissingExtraError


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_engine(parser)
    return parser.parse_args(["serve", "engine/models/stdlib-llama", "--ray", *arguments])


def test_replicas_are_a_number_or_a_range() -> None:
    assert cluster_of(parsed()) == ClusterOptions()
    assert cluster_of(parsed("--replicas", "3")).replicas == (3, 3)
    found = cluster_of(parsed("--replicas", "2:8", "--queued-tokens", "100", "--replica-gpus", "0.5"))
    assert (found.replicas, found.queued_tokens, found.gpus) == ((2, 8), 100, 0.5)


@pytest.mark.parametrize(
    "wrong", [("--replicas", "0"), ("--replicas", "3:2"), ("--queued-tokens", "0"), ("--replica-cpus", "-1")]
)
def test_arguments_that_make_no_sense_are_refused(wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parsed(*wrong)
    assert refused.value.code == 2


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.serve"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [each for each in sys.modules if each.startswith("engine.server_ray.")]:
        monkeypatch.delitem(sys.modules, name)
    args = parsed()
    with pytest.raises(MissingExtraError, match=r"--ray.* pip install .*'kernel-hub\[ray\]'"):
        args.run(args)


def test_settings_reach_replicas_and_secrets_are_apart() -> None:
    pytest.importorskip("ray.serve", reason="pip install 'kernel-hub[ray]'")
    from engine.server_ray.cluster import settings_for_replicas

    environ = {
        "HF_ENDPOINT": "http://hub",
        "HF_TOKEN": "secret",
        "KERNELS_CACHE": "/shared",
        "KHUB_TRUST_FILE": "/trust.json",
        "KHUB_API_KEYS": "theirs",
        "OTEL_EXPORTER_OTLP_HEADERS": "secret",
        "HOME": "/home/me",
        "HF_TOKEN_PATH": "/token",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HTTP_PROXY": "http://proxy",
        "HTTPS_PROXY": "http://me:secret@proxy",
    }
    secret = {"HF_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS", "HTTPS_PROXY"}
    shown, secrets = settings_for_replicas(environ)
    assert secrets == {name: environ[name] for name in secret}
    assert shown == {name: environ[name] for name in environ.keys() - secret - {"HOME", "KHUB_API_KEYS"}}


@pytest.mark.parametrize(
    ("queued", "wanted"), [({}, 1), ({"a": 0}, 1), ({"a": 100}, 1), ({"a": 90, "b": 11}, 2)]
)
def test_policy_wants_a_replica_for_every_so_many_tokens(queued: dict[str, float], wanted: int) -> None:
    context = SimpleNamespace(aggregated_metrics={"queued_tokens": queued})
    assert ByQueuedTokens(per_replica=100)(context) == (wanted, {})


def test_policy_without_metrics_wants_one_replica() -> None:
    assert ByQueuedTokens(per_replica=100)(SimpleNamespace(aggregated_metrics=None)) == (1, {})


def test_queued_tokens_are_prompts_that_wait_and_what_may_follow() -> None:
    waiting = Job([[1] * 30, [2] * 10], SamplingParams(max_tokens=5, n=2), 0.0, Job.accept)
    assert queued_tokens([waiting]) == 30 + 10 + 4 * 5
    begun = Job([[1] * 30], SamplingParams(max_tokens=1000), 0.0, Job.accept)
    begun.times.started = 1.0
    assert queued_tokens([begun]) == EXPECTED
    begun.generated = 100
    assert queued_tokens([begun]) == EXPECTED - 100
    begun.generated = 900
    assert queued_tokens([begun]) == 0
    begun.completions[0] = Completion(0, (1,), (1,), "x", "stop")
    assert queued_tokens([begun, waiting]) == 60


def test_work_that_has_just_come_to_an_idle_engine_does_not_count_as_stalled() -> None:
    old, new = (Job([[1]], SamplingParams(), created, Job.accept) for created in (100.0, 900.0))
    assert stalled_seconds([], beat=1.0, now=1000.0) == 0
    assert stalled_seconds([new], beat=1.0, now=1000.0) == 100
    assert stalled_seconds([old, new], beat=1.0, now=1000.0) == 900
    assert stalled_seconds([old, new], beat=990.0, now=1000.0) == 10
