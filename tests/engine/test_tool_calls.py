"""Calls of tools found in text, however the text is cut."""

from __future__ import annotations

import json

import pytest
from engine_models import SHIPPED
from hypothesis import given
from hypothesis import strategies as st

from engine import SamplingParams
from engine.guide import Guides
from engine.server.tools import Call, Style, ToolReader, forced_schema, style_of
from engine.tokenizer import Tokenizer

NAMES = {"add", "weather"}
MARK = "[TOOL_CALLS]"
ONE, OTHER = '[{"name": "add", "arguments": {"a": 1}}', '{"name": "weather", "arguments": {}}'
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def read(style: Style, pieces: list[str]) -> tuple[str, list[Call]]:
    reader = ToolReader(style, NAMES)
    parts = [part for piece in pieces for part in reader.push(piece)] + reader.finish()
    calls = [part for part in parts if isinstance(part, Call)]
    assert reader.called == bool(calls)
    return "".join(part for part in parts if isinstance(part, str)), calls


@pytest.mark.parametrize(
    ("style", "text", "shown", "calls"),
    [
        ("none", CALL, CALL, []),
        ("tagged", f"Well. {CALL}\n{CALL}", "Well. ", [Call("add", '{"a": 1}')] * 2),
        ("tagged", '<tool_call>{"name": "add"}', "", [Call("add", "{}")]),
        ("tagged", "<tool_call>{oops}</tool_call> so", "<tool_call>{oops}</tool_call> so", []),
        ("tagged", '<tool_call>{"name": "rm"}</tool_call>', '<tool_call>{"name": "rm"}</tool_call>', []),
        ("tagged", "1 < 2 <tool", "1 < 2 <tool", []),
        ("bare", ' {"name": "weather", "parameters": {"at": "é"}}', "", [Call("weather", '{"at": "é"}')]),
        ("bare", '{"a": 1}', '{"a": 1}', []),
        ("bare", "Hello {", "Hello {", []),
        ("bare", 'So {"name": "add"}', 'So {"name": "add"}', []),
        ("bare", '{"name": ["add"]}', '{"name": ["add"]}', []),
        ("bare", '{"name": "add", "arguments": {"a": NaN}}', '{"name": "add", "arguments": {"a": NaN}}', []),
        ("bare", '{"name":"add","arguments":{"a":1e999}}', '{"name":"add","arguments":{"a":1e999}}', []),
        ("bare", r'{"name":"add","arguments":{"\ud800":1}}', r'{"name":"add","arguments":{"\ud800":1}}', []),
        ("forced", '{"name":"add","arguments":{}}', "", [Call("add", "{}")]),
        ("forced", '{"name":"add","argu', '{"name":"add","argu', []),
        ("marked", f"Well. {MARK} {ONE}]", "Well. ", [Call("add", '{"a": 1}')]),
        ("marked", f"{MARK}{ONE}, {OTHER}]\n", "", [Call("add", '{"a": 1}'), Call("weather", "{}")]),
        ("marked", f'{MARK} {{"name": "add"}}', "", [Call("add", "{}")]),
        ("marked", f'{MARK}add[ARGS]{{"a": 1}}', "", [Call("add", '{"a": 1}')]),
        ("marked", f"{MARK}add[ARGS]{{}}{MARK}weather[ARGS]", "", [Call("add", "{}"), Call("weather", "{}")]),
        ("marked", f"{MARK}add[CALL_ID]a1b2c3d4e[ARGS]{{}}", "", [Call("add", "{}")]),
        ("marked", f"{MARK}add[ARGS]{{oops", f"{MARK}add[ARGS]{{oops", []),
        ("marked", f"{MARK} {ONE}", f"{MARK} {ONE}", []),
        ("marked", f'{MARK} {ONE}, {{"name": "rm"}}]', f'{MARK} {ONE}, {{"name": "rm"}}]', []),
        ("marked", f"{MARK} []", f"{MARK} []", []),
        ("marked", "1 [TOOL", "1 [TOOL", []),
    ],
)
def test_text_is_cut_into_what_is_shown_and_calls(
    style: Style, text: str, shown: str, calls: list[Call]
) -> None:
    assert read(style, [text]) == (shown, calls)
    assert read(style, list(text)) == (shown, calls)


@given(
    st.lists(
        st.sampled_from(
            [
                CALL,
                "text ",
                "<",
                "<tool_",
                "</tool_call>",
                "{",
                "<tool_call>",
                "x\n",
                MARK,
                "add[ARGS]{}",
                f"{ONE}]",
                "[",
            ]
        ),
        max_size=9,
    )
)
def test_text_in_pieces_of_any_size_gives_what_it_gives_whole(words: list[str]) -> None:
    text = "".join(words)
    for style in ("none", "tagged", "marked", "bare", "forced"):
        for size in (1, 2, 7):
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            assert read(style, pieces) == read(style, [text])


def test_style_is_what_the_template_shows() -> None:
    assert style_of("x", "x") == "none"
    assert style_of("x", "use <tool_call>") == "tagged"
    assert style_of("x", 'answer {"name": …}') == "bare"
    assert style_of("x", "[AVAILABLE_TOOLS][…][/AVAILABLE_TOOLS]x") == "marked"


@pytest.mark.parametrize("quoted", ["<tool_call>", MARK, "[AVAILABLE_TOOLS]"])
def test_style_is_not_what_somebody_says_in_the_conversation(quoted: str) -> None:
    assert style_of(f"what is {quoted}?", f"what is {quoted}? answer {{}}") == "bare"


def test_schema_of_a_forced_call_names_each_tool() -> None:
    tools = [{"function": {"name": name, "parameters": {"type": "object"}}} for name in sorted(NAMES)]
    assert forced_schema(tools[:1])["properties"]["name"] == {"const": "add"}
    assert len(forced_schema(tools)["anyOf"]) == 2
    json.dumps(forced_schema(tools))


@pytest.mark.parametrize("count", [1, 2])
def test_schema_of_a_forced_call_follows_references_to_a_tools_own_definitions(count: int) -> None:
    parameters = {
        "$defs": {"City": {"enum": ["Oslo"]}},
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/City"}, "$ref": {"type": "integer"}},
        "required": ["city"],
    }
    tools = [{"function": {"name": f"tool-{n}", "parameters": parameters}} for n in range(count)]
    tokenizer = Tokenizer(SHIPPED)
    guide = Guides(tokenizer.to_json, frozenset((0,))).make(SamplingParams(json_schema=forced_schema(tools)))
    assert guide is not None
    for token in tokenizer.encode('{"name": "tool-0", "arguments": {"city": "Oslo"}}', False):
        guide.advance(token)  # raises for what the schema does not allow
