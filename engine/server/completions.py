"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..output import Completion
from .errors import stopped
from .http import QUIET_SECONDS, EventStream, event, read_body, unless_gone
from .job import Event, Job
from .logprobs import of_completion
from .schema import CompletionBody
from .served import Served, new_id
from .tracing import note

DEFAULT_TOKENS = 16  # as OpenAI's
DONE = b"data: [DONE]\n\n"
ALIVE = b": still here\n\n"  # a comment, which clients pass over


async def completions(request: Request) -> Response:
    """Continue prompts: given as text or token ids, one or many."""
    served: Served = request.app.state.served
    body = await read_body(request, CompletionBody, served.options.max_body)
    served.check_name(body.model)
    texts, prompts = await _prompts(served, body)
    params = body.params(served.room(prompts, body.max_tokens, DEFAULT_TOKENS), body.logprobs)
    job = await served.submit(request.receive, prompts, params)
    note(request.scope, job)
    answer = _Answer(served, body, job, texts)
    if body.stream:
        return EventStream(job, answer.events(), "openai")
    return await unless_gone(request.receive, job.abort, answer.whole())


async def _prompts(served: Served, body: CompletionBody) -> tuple[list[str], list[list[int]]]:
    """The prompts' texts, for `echo`, and token ids."""
    prompts = await served.prompts(body.prompt, "prompt")
    if not body.echo:
        return [""] * len(prompts), prompts
    if isinstance(body.prompt, str):
        return [body.prompt], prompts
    texts = [each for each in body.prompt if isinstance(each, str)]
    return texts or [served.tokenizer.decode(prompt) for prompt in prompts], prompts


class _Answer:
    """One request's answer, whole or in pieces."""

    def __init__(self, served: Served, body: CompletionBody, job: Job, echoes: Sequence[str]) -> None:
        self._served = served
        self._body = body
        self._job = job
        self._echoes = [text for text in echoes for _ in range(job.params.n)]
        self._head = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }

    async def whole(self) -> Response:
        completions = await self._job.finished()
        check_served(completions)
        choices = []
        for index, each in enumerate(completions):
            logprobs = None
            if self._body.logprobs is not None:
                logprobs = of_completion(self._served.tokenizer, each.choices, 0)
            text = self._echoes[index] + each.text
            choices.append(
                {"index": index, "text": text, "logprobs": logprobs, "finish_reason": each.finish_reason}
            )
        return JSONResponse({**self._head, "choices": choices, "usage": usage(self._job)})

    async def events(self) -> AsyncIterator[bytes]:
        offsets = [0] * self._job.choices
        with_usage = bool(self._body.stream_options and self._body.stream_options.include_usage)
        extra = {"usage": None} if with_usage else {}
        echoes = {index: text for index, text in enumerate(self._echoes) if text}
        async for events in news(self._job):
            pieces = [] if events else [ALIVE]
            for index, delta in events:
                reason = delta.completion.finish_reason if delta.completion else None
                text = echoes.pop(index, "") + delta.text
                if not (text or reason or self._body.logprobs is not None):
                    continue
                logprobs = None
                if self._body.logprobs is not None and delta.choices:
                    logprobs = of_completion(self._served.tokenizer, delta.choices, offsets[index])
                    offsets[index] += sum(map(len, logprobs["tokens"]))
                choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
                pieces.append(event({**self._head, "choices": [choice], **extra}))
            yield b"".join(pieces)
        if with_usage:
            yield event({**self._head, "choices": [], "usage": usage(self._job)})
        yield DONE


async def news(job: Job) -> AsyncIterator[list[Event]]:
    """Batches of a job's events, an empty one as a sign of life.

    Raises:
        RequestError: the server gave it up.
    """
    async for events in job.batches(QUIET_SECONDS):
        if any(delta.completion and delta.completion.finish_reason == "abort" for _, delta in events):
            raise stopped()
        yield events


def check_served(completions: Sequence[Completion]) -> None:
    """Raises RequestError 503 if one was given up."""
    if any(each.finish_reason == "abort" for each in completions):
        raise stopped()


def usage(job: Job) -> dict[str, Any]:
    """Tokens of a job that is over; each prompt counts once, however many continuations it has."""
    completions = job.completions.values()
    prompt = sum(map(len, job.prompts))
    generated = sum(len(each.tokens) for each in completions)
    first = [job.completions[i] for i in range(0, job.choices, job.params.n) if i in job.completions]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in first)},
    }
