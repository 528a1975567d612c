"""The real `khub engine serve --ray` on a local Ray: two replicas, one of which is killed under load."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_models import SHIPPED
from serving import NAME, Server, start

pytest.importorskip("ray.serve", reason="pip install 'kernel-hub[ray]'")

LONG: dict[str, Any] = {"model": NAME, "max_tokens": 150, "temperature": 0, "ignore_eos": True}
PREFIX = "def a_function_of_many_words(argument, another_argument, yet_another_argument):\n" * 8


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two replicas that compute one continuation at a time."""
    arguments = ("--ray", "--replicas", "2", "--replica-cpus", "0.5", "--max-sequences", "1")
    server = start(SHIPPED, tmp_path_factory.mktemp("fleet") / "stderr", *arguments)
    yield server
    if server.process.poll() is None:
        server.stop()


def replicas_of(server: Server) -> list[int]:
    """Process ids of the replicas below a server."""
    below, found = {server.process.pid}, []
    for pid in sorted(int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal()):
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if parent in below:
            below.add(pid)
            if title.startswith(b"ray::ServeReplica"):
                found.append(pid)
    return found


def ask(server: Server, prompt: str, **more: Any) -> httpx.Response:
    body = LONG | {"prompt": prompt} | more
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)


def streamed(server: Server, prompt: str) -> tuple[str, dict[str, Any] | None]:
    """The text of a stream, and the error that it ended with."""
    body = LONG | {"prompt": prompt, "stream": True}
    text, error = "", None
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                error = event.get("error", error)
                text += event["choices"][0]["text"] if "choices" in event else ""
    return text, error


@pytest.mark.heavy
def test_prompts_that_begin_alike_go_to_one_replica_and_find_its_cache(fleet: Server) -> None:
    answers = [ask(fleet, PREFIX + str(number), max_tokens=1) for number in range(4)]
    assert len({answer.headers["x-khub-replica"] for answer in answers}) == 1
    cached = [answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached[0] == 0
    assert min(cached[1:]) > 0


@pytest.mark.heavy
def test_client_that_goes_away_gives_up_what_its_replica_computes(fleet: Server) -> None:
    body = LONG | {"prompt": "def main():", "stream": True, "max_tokens": 900}
    with httpx.stream("POST", f"{fleet.url}/v1/completions", json=body, timeout=120) as answer:
        lines = answer.iter_lines()  # dropped, it would close the connection
        assert next(lines).startswith("data: ")
        fleet.wait_until(lambda: fleet.metric("vllm:num_requests_running") == 1, "it runs")
        before = fleet.metric("vllm:generation_tokens_total")
    fleet.wait_until(fleet.idle, "it is given up")
    assert fleet.metric("vllm:generation_tokens_total") - before < 800


@pytest.mark.heavy
def test_replica_killed_under_load_costs_only_the_streams_that_it_had_begun(fleet: Server) -> None:
    prompts = [f"def function_{number}():" for number in range(4)]
    expected = {prompt: ask(fleet, prompt).json()["choices"][0]["text"] for prompt in prompts[:1]}
    victim = replicas_of(fleet)[0]
    with ThreadPoolExecutor(16) as pool:
        streams = [pool.submit(streamed, fleet, prompt) for prompt in prompts]
        waiting = [pool.submit(ask, fleet, prompt) for prompt in prompts]
        fleet.wait_until(lambda: fleet.metric("vllm:num_requests_running") == 2, "both are at work")
        fleet.wait_until(lambda: fleet.metric("vllm:num_requests_waiting") >= 4, "others wait")
        os.kill(victim, signal.SIGKILL)
        answers = [each.result() for each in waiting]
        ended = [each.result() for each in streams]
    assert [answer.status_code for answer in answers] == [200] * 4
    texts = {
        prompt: answer.json()["choices"][0]["text"] for prompt, answer in zip(prompts, answers, strict=True)
    }
    assert texts[prompts[0]] == expected[prompts[0]]
    lost = [(text, error) for text, error in ended if error is not None]
    assert len(lost) <= 1  # one continuation at a time
    for text, error in lost:
        assert (error["code"], error["type"]) == ("replica_lost", "server_error") and text
    for prompt, (text, error) in zip(prompts, ended, strict=True):
        assert error is not None or text == texts[prompt]
    fleet.wait_until(lambda: len(replicas_of(fleet)) == 2 and victim not in replicas_of(fleet), "a new one")
    fleet.wait_until(lambda: httpx.get(f"{fleet.url}/health").json()["replicas"] == 2, "it serves")


@pytest.mark.heavy
def test_stop_waits_for_what_is_under_way_and_leaves_no_process(fleet: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, fleet, "import os")
        fleet.wait_until(lambda: fleet.metric("vllm:num_requests_running") == 1, "it runs")
        pids = replicas_of(fleet)
        fleet.process.send_signal(signal.SIGTERM)
        assert answer.result().status_code == 200
    assert fleet.process.wait(timeout=60) == 0
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
