"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..output import Completion
from ..params import SamplingParams
from .anthropic_schema import Counted, MessagesBody, TextBlock, ToolResultBlock, ToolUseBlock, Turn
from .completions import check_served
from .conversation import Prompt, make_prompt, said
from .http import EventStream, event, read_body, unless_gone
from .job import Job
from .served import Served, new_id
from .tools import Call
from .tracing import note


async def messages(request: Request) -> Response:
    """Answer a conversation."""
    served: Served = request.app.state.served
    body = await read_body(request, MessagesBody, served.options.max_body)
    served.check_name(body.model)
    prompt = await _prompt(served, body)
    params = SamplingParams(
        max_tokens=served.room([prompt.tokens], body.max_tokens),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        stop=tuple(body.stop_sequences or ()),
        json_schema=prompt.schema,
    )
    params = prompt.reads(params)
    job = await served.submit(request.receive, [prompt.tokens], params)
    note(request.scope, job)
    answer = _Answer(served, body, job, prompt)
    if body.stream:
        return EventStream(job, answer.events(), "anthropic")
    return await unless_gone(request.receive, job.abort, answer.whole())


async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation has."""
    served: Served = request.app.state.served
    body = await read_body(request, Counted, served.options.max_body)
    served.check_name(body.model)
    prompt = await _prompt(served, body)
    return JSONResponse({"input_tokens": len(prompt.tokens)})


async def _prompt(served: Served, body: Counted) -> Prompt:
    turns = [each for turn in body.messages for each in _plain(turn)]
    if body.system:
        turns.insert(0, {"role": "system", "content": _text(body.system)})
    return await make_prompt(served, turns, [tool.as_function() for tool in body.tools or ()], body.choice)


def _plain(turn: Turn) -> list[dict[str, Any]]:
    """A turn as messages that templates read: each result of a tool is one of its own."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    found: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content or "")}
        for block in turn.content
        if isinstance(block, ToolResultBlock)
    ]
    texts = [block for block in turn.content if isinstance(block, TextBlock)]
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
        for block in turn.content
        if isinstance(block, ToolUseBlock)
    ]
    if texts or calls or not found:
        found.append({"role": turn.role, "content": _text(texts)} | ({"tool_calls": calls} if calls else {}))
    return found


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


class _Answer:
    """One request's answer, whole or in pieces."""

    def __init__(self, served: Served, body: MessagesBody, job: Job, prompt: Prompt) -> None:
        self._served = served
        self._body = body
        self._job = job
        self._prompt = prompt
        self._head: dict[str, Any] = {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": body.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    async def whole(self) -> Response:
        completions = await self._job.finished()
        check_served(completions)
        [completion] = completions
        reader = self._prompt.reader()
        parts = reader.push(completion.text) + reader.finish()
        content = [_block(part, self._prompt) for part in parts]
        end = self._end(completion, reader.called)
        used = self._usage(completion)
        return JSONResponse({**self._head, "content": content, **end, "usage": used})

    async def events(self) -> AsyncIterator[bytes]:
        used = {"input_tokens": len(self._prompt.tokens), "output_tokens": 0}
        yield _named({"type": "message_start", "message": {**self._head, "usage": used}})
        blocks = _Blocks(self._prompt)
        async for batch in said(self._job, self._prompt):
            pieces = [] if batch else [_named({"type": "ping"})]
            for each in batch:
                for part in each.parts:
                    pieces += blocks.add(part)
                completion = each.delta.completion
                if completion is not None:
                    pieces += blocks.close()
                    end = self._end(completion, each.called)
                    used = self._usage(completion)
                    pieces.append(_named({"type": "message_delta", "delta": end, "usage": used}))
                    pieces.append(_named({"type": "message_stop"}))
            yield b"".join(pieces)

    def _end(self, completion: Completion, called: bool) -> dict[str, Any]:
        stops = tuple(self._body.stop_sequences or ())
        sequence = self._served.stop_text(completion, stops, self._job.params.show_special)
        if called:
            reason = "tool_use"
        elif sequence is not None:
            reason = "stop_sequence"
        else:
            reason = "max_tokens" if completion.finish_reason == "length" else "end_turn"
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _usage(self, completion: Completion) -> dict[str, int]:
        """What was in the cache already is not among the input tokens, as in Anthropic's own counts."""
        return {
            "input_tokens": len(self._prompt.tokens) - completion.cached_tokens,
            "cache_read_input_tokens": completion.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": len(completion.tokens),
        }


class _Blocks:
    """The content blocks of a stream: text goes on in one, a call is one of its own."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._index = -1
        self._open = False

    def add(self, part: str | Call) -> list[bytes]:
        """The events of a piece of text or of a call."""
        if isinstance(part, str):
            delta = {"type": "text_delta", "text": part}
            begun = [] if self._open else self._begin({"type": "text", "text": ""})
            self._open = True
            return [*begun, self._delta(delta)]
        block = _block(part, self._prompt) | {"input": {}}
        events = [*self.close(), *self._begin(block)]
        self._open = True
        return [
            *events,
            self._delta({"type": "input_json_delta", "partial_json": part.arguments}),
            *self.close(),
        ]

    def close(self) -> list[bytes]:
        """The end of the block that is open."""
        if not self._open:
            return []
        self._open = False
        return [_named({"type": "content_block_stop", "index": self._index})]

    def _begin(self, block: dict[str, Any]) -> list[bytes]:
        self._index += 1
        return [_named({"type": "content_block_start", "index": self._index, "content_block": block})]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _named({"type": "content_block_delta", "index": self._index, "delta": delta})


def _block(part: str | Call, prompt: Prompt) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {
        "type": "tool_use",
        "id": prompt.call_id("toolu_"),
        "name": part.name,
        "input": json.loads(part.arguments),
    }


def _named(data: dict[str, Any]) -> bytes:
    return event(data, data["type"])
