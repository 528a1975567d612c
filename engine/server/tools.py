"""Calls of tools in what a model says. Pure.

Models write a call as their template taught them to:

- "tagged": `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, between or after other text (Hermes, Qwen);
- "marked": `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` for each call, at the end
  of the text (Mistral); the markers are special tokens, which the text has to show;
- "bare": the answer is the JSON object alone, with "arguments" or "parameters" (Llama 3);
- "forced": as "bare", where the request leaves the model no choice and the text is guided.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Style = Literal["none", "tagged", "marked", "bare", "forced"]
OPEN, CLOSE = "<tool_call>", "</tool_call>"
MARK, ID, ARGUMENTS, LISTED = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[AVAILABLE_TOOLS]"


@dataclass(frozen=True)
class Call:
    """A function's name and its arguments as JSON."""

    name: str
    arguments: str


class ToolReader:
    """Takes text piece by piece and gives back what is certain: text to show, and calls."""

    def __init__(self, style: Style, names: Collection[str]) -> None:
        """`names`: of the functions there are; whatever calls another one is text."""
        self._style = style
        self._names = names
        self._held = ""
        self._calls = 0
        self._behind = False  # a call, with nothing but space since
        self._shown = False  # text: what follows it is no bare call

    @property
    def called(self) -> bool:
        """Whether there was a call."""
        return self._calls > 0

    def push(self, text: str) -> list[str | Call]:
        """What is certain now and was not before."""
        self._held += text
        if self._style == "none":
            return self._text(len(self._held))
        if self._style == "marked":
            return self._marked(self._held.rfind(MARK))
        if self._style != "tagged":
            begun = self._held.lstrip()
            waits = self._style == "forced" or (not self._shown and (not begun or begun[0] == "{"))
            return [] if waits else self._text(len(self._held))
        found: list[str | Call] = []
        while (start := self._held.find(OPEN)) >= 0 and (end := self._held.find(CLOSE, start)) >= 0:
            found += self._text(start)
            end -= start
            found += self._call(end + len(CLOSE), self._held[len(OPEN) : end])
        return found + self._text(start if start >= 0 else len(self._held) - _overlap(self._held, OPEN))

    def finish(self) -> list[str | Call]:
        """The rest, when no text follows."""
        inside = self._held
        if self._style == "marked":
            return self._marked(len(inside))
        if self._style == "tagged":
            if not inside.startswith(OPEN):
                return self._text(len(inside))
            inside = inside.removeprefix(OPEN)
        elif self._style == "none" or self._shown:
            return self._text(len(inside))
        return self._call(len(self._held), inside)

    def _marked(self, end: int) -> list[str | Call]:
        """What is before `end`, and no part of a call that is not whole; without a mark (-1) what cannot begin one."""
        if end < 0:
            return self._text(len(self._held) - _overlap(self._held, MARK))
        plain, *marked = self._held[:end].split(MARK)
        found = self._text(len(plain))
        for each in marked:
            calls = _parse_marked(each, self._names)
            if calls is None:
                found += self._text(len(MARK) + len(each))
                continue
            self._held = self._held[len(MARK) + len(each) :]
            self._calls += len(calls)
            self._behind = True
            found += calls
        return found

    def _call(self, end: int, inside: str) -> list[str | Call]:
        """The call that the first `end` characters are, or they as text."""
        call = _parse(inside, self._names)
        if call is None:
            return self._text(end)
        self._held = self._held[end:]
        self._calls += 1
        self._behind = True
        return [call]

    def _text(self, end: int) -> list[str | Call]:
        text, self._held = self._held[:end], self._held[end:]
        if self._behind:
            text = text.lstrip()
            self._behind = not text
        self._shown = self._shown or bool(text)
        return [text] if text else []


def style_of(plain: str, with_tools: str) -> Style:
    """How a model calls, from what its template makes of one conversation without and with tools."""
    if plain == with_tools:
        return "none"
    # What the conversation itself quotes is in both.
    if any(with_tools.count(mark) > plain.count(mark) for mark in (LISTED, MARK)):
        return "marked"
    return "tagged" if with_tools.count(OPEN) > plain.count(OPEN) else "bare"


def forced_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of a call of one of these tools, each `{"function": {"name": …, "parameters": …}}`."""
    calls = []
    for number, tool in enumerate(tools):
        place = f"{f'/anyOf/{number}' if len(tools) > 1 else ''}/properties/arguments"
        arguments = tool["function"].get("parameters") or {"type": "object"}
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["function"]["name"]},
                    "arguments": _moved(arguments, place),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return compact(calls[0] if len(calls) == 1 else {"anyOf": calls})


def compact(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema for guided text without line breaks: small models go on making space until their end."""
    layout = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return {"x-guidance": layout, **schema}


def _moved(schema: Any, place: str) -> Any:
    """A schema that becomes part of another at the JSON pointer `place`: references to its own root lead there."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = f"#{place}{reference[1:]}"
    return moved


def _parse(text: str, names: Collection[str]) -> Call | None:
    try:
        return _read(json.loads(text), names)
    except (ValueError, TypeError, RecursionError):
        return None


def _parse_marked(text: str, names: Collection[str]) -> list[Call] | None:
    """The calls behind a mark; None if that is anything else."""
    named, separator, written = text.partition(ARGUMENTS)
    try:
        if separator:
            name = named.partition(ID)[0].strip()
            calls = [_read({"name": name, "arguments": json.loads(written or "{}")}, names)]
        else:
            data = json.loads(text)
            calls = [_read(each, names) for each in (data if isinstance(data, list) else [data])]
    except (ValueError, TypeError, RecursionError):
        return None
    found = [call for call in calls if call is not None]
    return found if found and len(found) == len(calls) else None


def _read(data: Any, names: Collection[str]) -> Call | None:
    """A call of what was JSON; raises what its JSON cannot be written with."""
    if not isinstance(data, dict) or data.get("name") not in names:
        return None
    arguments = data.get("arguments", data.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    written.encode()  # half a surrogate pair can be read, and not sent
    return Call(data["name"], written)


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end may be the beginning of the tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
