"""The engine's thread on its own: failing steps, refused prompts, jobs of many prompts; and traces of a server."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from engine_models import SHIPPED, MakeModel
from serving import NAME, StartServer

from engine import LLM, SamplingParams
from engine.guide import TokenGuide
from engine.server.app import create_app
from engine.server.options import Options
from engine.server.worker import MOST_FAILURES, EngineFailure, GivenUp, Worker
from hub_loader.errors import UsageError

FIVE = SamplingParams(max_tokens=5, ignore_stop=True)


def run(llm: LLM, play: Callable[[Worker], Awaitable[None]]) -> None:
    async def whole() -> None:
        worker = Worker(llm)
        worker.start()
        try:
            await asyncio.wait_for(play(worker), 120)
        finally:
            await worker.stop()

    asyncio.run(whole())


def break_forward(llm: LLM, patch: pytest.MonkeyPatch, times: int) -> None:
    """The model fails this many times, and then works."""
    forward, left = llm.model.forward, [times]

    def fail(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("the device is on fire")
        return forward(*arguments)

    patch.setattr(llm.model, "forward", fail)


def test_step_that_fails_answers_its_requests_and_the_next_are_computed(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(make_model(), max_sequences=2)
    break_forward(llm, monkeypatch, 1)

    async def play(worker: Worker) -> None:
        jobs = [worker.submit([[n + 1]], FIVE) for n in range(4)]
        answers = await asyncio.gather(*(job.finished() for job in jobs), return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, EngineFailure)]
        assert 1 <= len(failed) <= 2  # those of the step, however many had come by then
        assert all(len(a[0].tokens) == 5 for a in answers if isinstance(a, list))
        assert not worker.broken and not worker.jobs
        assert llm.scheduler.pool.held == 0 and not llm.busy

    run(llm, play)


def test_engine_whose_steps_all_fail_is_broken_and_answers_everybody(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(make_model(), max_sequences=1)
    break_forward(llm, monkeypatch, 1000)

    async def play(worker: Worker) -> None:
        jobs = [worker.submit([[n + 1]], FIVE) for n in range(MOST_FAILURES + 3)]
        answers = await asyncio.gather(*(job.finished() for job in jobs), return_exceptions=True)
        assert all(isinstance(answer, EngineFailure) for answer in answers)
        assert worker.broken and not llm.busy
        with pytest.raises(EngineFailure):
            await worker.submit([[1]], FIVE).accepted()

    run(llm, play)


def test_prompt_that_the_engine_refuses_takes_the_others_of_its_request_along(make_model: MakeModel) -> None:
    llm = LLM(make_model())

    async def play(worker: Worker) -> None:
        job = worker.submit([[1], [2], [9999], [3]], FIVE)
        with pytest.raises(UsageError, match="outside 0"):
            await job.accepted()
        assert (await worker.submit([[1], [2]], FIVE).finished())[1].tokens
        assert not worker.jobs and llm.scheduler.pool.held == 0

    run(llm, play)


def test_job_that_is_aborted_ends_all_its_choices(make_model: MakeModel) -> None:
    llm = LLM(make_model(), max_sequences=2)

    async def play(worker: Worker) -> None:
        params = SamplingParams(max_tokens=200, ignore_stop=True, n=2)
        job = worker.submit([[1], [2], [3]], params)
        await job.accepted()
        job.abort()
        assert {each.finish_reason for each in await job.finished()} == {"abort"}
        assert len(job.completions) == 6
        assert llm.scheduler.pool.held == 0

    run(llm, play)


def test_job_that_is_given_up_while_its_prompts_are_added_is_forgotten(make_model: MakeModel) -> None:
    llm = LLM(make_model(), max_sequences=2)

    async def play(worker: Worker) -> None:
        job = worker.submit([[1, 2]] * 3000, FIVE)
        assert worker.waiting == 3000
        job.abort()
        with pytest.raises(GivenUp):
            await job.accepted()
        assert not worker.waiting and not worker.jobs
        assert (await worker.submit([[1]], FIVE).finished())[0].tokens
        assert llm.scheduler.pool.held == 0 and not llm.busy

    run(llm, play)


def test_thread_that_fails_breaks_the_engine_and_answers_everybody(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(make_model())

    def fail(request_id: int) -> None:
        raise ValueError("the scheduler has lost a sequence")

    monkeypatch.setattr(llm, "abort", fail)

    async def play(worker: Worker) -> None:
        params = SamplingParams(max_tokens=200, ignore_stop=True)
        jobs = [worker.submit([[n + 1]], params) for n in range(3)]
        await jobs[2].accepted()
        jobs[0].abort()
        answers = await asyncio.gather(*(job.finished() for job in jobs), return_exceptions=True)
        assert all(isinstance(answer, EngineFailure) for answer in answers)
        assert worker.broken and not worker.jobs

    run(llm, play)


def test_vectors_are_answered_too_when_the_engines_thread_dies(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(make_model())

    async def play(worker: Worker) -> None:
        def die() -> Any:
            raise MemoryError

        monkeypatch.setattr(worker, "_measure", die)
        vectors = [worker.embed([[1, 2, 3]], "mean") for _ in range(2)]
        answers = await asyncio.gather(*vectors, return_exceptions=True)
        assert all(isinstance(answer, EngineFailure) for answer in answers)
        assert worker.broken and not worker.embedding
        with pytest.raises(EngineFailure):
            await worker.embed([[1]], "mean")

    run(llm, play)


def test_input_of_embeddings_that_is_longer_than_the_cache_is_refused(make_model: MakeModel) -> None:
    llm = LLM(make_model(), num_blocks=2, block_size=16)

    async def whole() -> None:
        app = create_app(llm, Options(name=NAME))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            asked = {"model": NAME, "input": [[1] * 32]}
            assert (await client.post("/v1/embeddings", json=asked)).status_code == 200
            refused = await client.post("/v1/embeddings", json=asked | {"input": [[1] * 33]})
            assert refused.status_code == 400
            assert "33 tokens; this server's limit is 32" in refused.json()["error"]["message"]

    asyncio.run(whole())


def test_grammar_that_takes_long_to_compile_delays_nobody_else(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, entered, go_on = LLM(make_model()), threading.Event(), threading.Event()
    make = llm._guides.make

    def slow(params: SamplingParams) -> TokenGuide | None:
        if params.regex:
            entered.set()
            go_on.wait(60)
        return make(params)

    monkeypatch.setattr(llm._guides, "make", slow)

    async def whole() -> None:
        app = create_app(llm, Options(name=NAME))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            body = {"model": NAME, "prompt": [[1], [2]], "max_tokens": 5}
            guided = body | {"structured_outputs": {"regex": "[ab]{3}"}}
            asked = asyncio.create_task(client.post("/v1/completions", json=guided))
            await asyncio.to_thread(entered.wait, 60)
            try:
                other = await asyncio.wait_for(client.post("/v1/completions", json=body), 30)
            finally:
                go_on.set()
            assert other.status_code == 200
            texts = [choice["text"] for choice in (await asked).json()["choices"]]
            assert len(texts) == 2 and all(set(text) <= {"a", "b"} and len(text) == 3 for text in texts)

    asyncio.run(whole())


@pytest.mark.slow
def test_traces_have_a_span_for_each_request_with_what_it_used(start_server: StartServer) -> None:
    server = start_server(SHIPPED, OTEL_TRACES_EXPORTER="console")
    server.openai().completions.create(
        model=NAME, prompt="secret prompt", max_tokens=3, extra_body={"ignore_eos": True}
    )
    server.process.send_signal(signal.SIGTERM)
    written, _ = server.process.communicate(timeout=60)
    span = json.loads(written)
    assert span["name"] == f"text_completion {NAME}"
    assert span["attributes"]["gen_ai.usage.output_tokens"] == 3
    assert span["attributes"]["gen_ai.response.finish_reasons"] == ["length"]
    assert span["attributes"]["http.response.status_code"] == 200
    assert "secret" not in written
