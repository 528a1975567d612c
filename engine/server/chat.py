"""POST /v1/chat/completions."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .completions import ALIVE, DONE, check_served, usage
from .conversation import Prompt, Said, make_prompt, said
from .errors import RequestError
from .http import EventStream, event, read_body, unless_gone
from .job import Job
from .logprobs import of_chat
from .schema import ChatBody, Message, NamedTool, Part
from .served import Served, new_id
from .tools import Call, compact
from .tracing import note


async def chat(request: Request) -> Response:
    """Answer a conversation."""
    served: Served = request.app.state.served
    body = await read_body(request, ChatBody, served.options.max_body)
    served.check_name(body.model)
    chosen = body.tool_choice or "auto"
    prompt = await make_prompt(
        served,
        [_message(message) for message in body.messages],
        [tool.model_dump(exclude_none=True) for tool in body.tools or ()],
        chosen.function.name if isinstance(chosen, NamedTool) else chosen,
    )
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    guide = body.response_format.guide if body.response_format else None
    schema = prompt.schema if guide is None else compact(guide)
    room = served.room([prompt.tokens], body.max_completion_tokens or body.max_tokens)
    params = prompt.reads(body.params(room, logprobs, schema))
    job = await served.submit(request.receive, [prompt.tokens], params)
    note(request.scope, job)
    answer = _Answer(served, body, job, prompt)
    if body.stream:
        return EventStream(job, answer.events(), "openai")
    return await unless_gone(request.receive, job.abort, answer.whole())


def text_of(content: str | list[Part] | None) -> str | None:
    """Parts as one text: templates expect that."""
    return "".join(part.text for part in content) if isinstance(content, list) else content


def _message(message: Message) -> dict[str, Any]:
    """A message as templates read it. Raises RequestError for a call whose arguments are no JSON object."""
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": text_of(message.content) or "",
    }
    for key in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, key)) is not None:
            plain[key] = value
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return plain


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text or "{}")
        json.dumps(
            arguments, ensure_ascii=False
        ).encode()  # half a surrogate pair can be read, and not encoded
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise RequestError(400, "The arguments of a tool call are no JSON object.", param="messages")
    return arguments


class _Answer:
    """One request's answer, whole or in pieces."""

    def __init__(self, served: Served, body: ChatBody, job: Job, prompt: Prompt) -> None:
        self._served = served
        self._body = body
        self._job = job
        self._prompt = prompt
        self._calls = [0] * job.choices
        self._head = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": body.model}

    async def whole(self) -> Response:
        completions = await self._job.finished()
        check_served(completions)
        choices = []
        for index, each in enumerate(completions):
            reader = self._prompt.reader()
            parts = reader.push(each.text) + reader.finish()
            text = "".join(part for part in parts if isinstance(part, str))
            calls = [self._call(index, part) for part in parts if isinstance(part, Call)]
            message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
            if calls:
                message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": of_chat(self._served.tokenizer, each.choices)
                    if self._body.logprobs
                    else None,
                    "finish_reason": "tool_calls" if calls else each.finish_reason,
                }
            )
        head = {**self._head, "object": "chat.completion"}
        return JSONResponse({**head, "choices": choices, "usage": usage(self._job)})

    async def events(self) -> AsyncIterator[bytes]:
        with_usage = bool(self._body.stream_options and self._body.stream_options.include_usage)
        extra = {"usage": None} if with_usage else {}
        head = {**self._head, "object": "chat.completion.chunk"}

        def chunk(
            index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None
        ) -> bytes:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            return event({**head, "choices": [choice], **extra})

        first = {"role": "assistant", "content": ""}
        yield b"".join(chunk(index, first) for index in range(self._job.choices))
        async for batch in said(self._job, self._prompt):
            pieces = [] if batch else [ALIVE]
            for each in batch:
                deltas = self._deltas(each)
                logprobs = None
                if self._body.logprobs and each.delta.choices:
                    logprobs = of_chat(self._served.tokenizer, each.delta.choices)
                    deltas = deltas or [{}]
                for delta in deltas:
                    pieces.append(chunk(each.index, delta, None, logprobs))
                    logprobs = None
                if each.delta.completion is not None:
                    reason = "tool_calls" if each.called else each.delta.completion.finish_reason
                    pieces.append(chunk(each.index, {}, reason))
            yield b"".join(pieces)
        if with_usage:
            yield event({**head, "choices": [], "usage": usage(self._job)})
        yield DONE

    def _deltas(self, each: Said) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for part in each.parts:
            if isinstance(part, str):
                found.append({"content": part})
            else:
                found.append({"tool_calls": [self._call(each.index, part)]})
        return found

    def _call(self, index: int, call: Call) -> dict[str, Any]:
        number, self._calls[index] = self._calls[index], self._calls[index] + 1
        return {
            "index": number,
            "id": self._prompt.call_id("call_"),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
