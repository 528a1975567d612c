"""A conversation, whichever API it came by: as a prompt, and its answers as text and calls."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hub_loader.errors import ModelError

from ..chat import render_chat
from ..output import Delta
from ..params import SamplingParams
from .completions import news
from .errors import RequestError
from .job import Job
from .served import Served, new_id
from .tools import Call, Style, ToolReader, forced_schema, style_of


@dataclass(frozen=True)
class Prompt:
    """Token ids; how calls of tools look in the answer; the schema that a forced call follows.

    marked: whether the template is one of those whose calls are marked, also where this one is forced.
    """

    tokens: list[int]
    style: Style
    names: frozenset[str]
    schema: dict[str, Any] | None
    marked: bool = False

    def reader(self) -> ToolReader:
        """For one choice."""
        return ToolReader(self.style, self.names)

    def reads(self, params: SamplingParams) -> SamplingParams:
        """The parameters with which a call can be seen in the text."""
        return replace(params, show_special=True) if self.style == "marked" else params

    def call_id(self, prefix: str) -> str:
        """An id for a call; Mistral's templates take back nine letters and digits alone."""
        return secrets.token_hex(5)[:9] if self.marked else new_id(prefix)


@dataclass(frozen=True)
class Said:
    """What a step added to a choice."""

    index: int
    parts: tuple[str | Call, ...]
    delta: Delta
    called: bool


async def make_prompt(
    served: Served,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    choice: str,
) -> Prompt:
    """Render a conversation.

    tools: in OpenAI's form. choice: "none", "auto", "required", or the name of the one to call.

    Raises:
        RequestError: the model has no template, or its template no tools.
        UsageError: the template refuses the conversation.
    """
    given = list(tools) if choice != "none" else []
    text, style = await asyncio.to_thread(_render, served.folder, messages, given)
    tokens = await served.encode(text, rendered=True)
    if not tokens:
        raise RequestError(400, "The conversation is an empty prompt: say something.", param="messages")
    names = frozenset(tool["function"]["name"] for tool in given)
    if not given or choice == "auto":
        return Prompt(tokens, style, names, None, style == "marked")
    allowed = [tool for tool in given if choice in ("required", tool["function"]["name"])]
    return Prompt(tokens, "forced", names, forced_schema(allowed), style == "marked")


async def said(job: Job, prompt: Prompt) -> AsyncIterator[list[Said]]:
    """A job's events as text and calls, in batches; an empty batch is a sign of life. Raises as `news`."""
    readers = [prompt.reader() for _ in range(job.choices)]
    async for events in news(job):
        batch = []
        for index, delta in events:
            parts = readers[index].push(delta.text)
            if delta.completion is not None:
                parts += readers[index].finish()
            batch.append(Said(index, tuple(parts), delta, readers[index].called))
        yield batch


def _render(
    folder: Path, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> tuple[str, Style]:
    try:
        text = render_chat(folder, messages, tools or None)
        if not tools:
            return text, "none"
        style = style_of(render_chat(folder, messages), text)
    except ModelError:
        raise RequestError(
            400,
            "This model has no chat template: send plain text to /v1/completions.",
            code="no_chat_template",
        ) from None
    if style == "none":
        raise RequestError(400, "This model's chat template has no tools: leave them out.", param="tools")
    return text, style
