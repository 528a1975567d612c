"""Conversations with a real server, by the stock clients of OpenAI and Anthropic."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from engine_models import SHIPPED
from serving import NAME, Server, StartServer

from engine.tokenizer import Tokenizer

ASKED: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "def main():"}]
RENDERED = "<|system|>Be brief.\n<|user|>def main():\n<|assistant|>"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "Now", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},
]
HALF_A_PAIR: Any = {
    "role": "assistant",
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": r'{"a": "\ud800"}'}}
    ],
}
GREEDY: Any = {"extra_body": {"temperature": 0}}  # the newest client has no argument for it
CALLING = r'Well\. <tool_call>\{"name": "weather", "arguments": \{"city": "(Oslo|Rome)"\}\}</tool_call>'


def test_chat_is_the_completion_of_the_rendered_conversation(server: Server) -> None:
    client = server.openai()
    answer = client.chat.completions.create(
        model=NAME, messages=ASKED, max_completion_tokens=12, temperature=0, logprobs=True, top_logprobs=2
    )
    plain = client.completions.create(
        model=NAME,
        prompt=Tokenizer(SHIPPED).encode(RENDERED, add_special_tokens=False),
        max_tokens=12,
        temperature=0,
    )
    assert answer.choices[0].message.content == plain.choices[0].text
    assert answer.choices[0].finish_reason == plain.choices[0].finish_reason
    assert answer.usage is not None and plain.usage is not None
    assert answer.usage.total_tokens == plain.usage.total_tokens
    content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert content is not None and len(content) == answer.usage.completion_tokens
    assert all(len(each.top_logprobs) == 2 for each in content)


def test_chat_streamed_is_the_whole_one(server: Server) -> None:
    client = server.openai()
    asked: Any = {"model": NAME, "messages": ASKED, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage


def test_chat_without_max_tokens_may_go_on_to_the_end_of_the_context(server: Server) -> None:
    stream = server.openai().chat.completions.create(model=NAME, messages=ASKED, stream=True)
    next(iter(stream))
    stream.close()


def test_chat_with_a_schema_answers_with_json_of_it(server: Server) -> None:
    answer = server.openai().chat.completions.create(
        model=NAME,
        messages=ASKED,
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}},
    )
    assert json.loads(answer.choices[0].message.content or "")["city"] in ("Oslo", "Rome")


def test_tool_that_has_to_be_called_is_called_with_arguments_of_its_schema(server: Server) -> None:
    client = server.openai()
    named: Any = {"type": "function", "function": {"name": "weather"}}
    for choice in (named, "required"):
        answer = client.chat.completions.create(
            model=NAME, messages=ASKED, tools=TOOLS, tool_choice=choice, max_tokens=60, seed=1
        )
        [call] = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert answer.choices[0].finish_reason == "tool_calls"
        if call.function.name == "weather":
            assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


def test_tool_that_the_model_calls_of_itself_is_found_beside_its_text(server: Server) -> None:
    client = server.openai()
    asked: Any = {"model": NAME, "messages": ASKED, "tools": TOOLS, "max_tokens": 200}
    asked["extra_body"] = {"structured_outputs": {"regex": CALLING}}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == "Well. "
    [call] = whole.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "weather"
    chunks = list(client.chat.completions.create(**asked, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Well. "
    [streamed] = [each for delta in deltas for each in delta.tool_calls or ()]
    assert streamed.function is not None and streamed.function.name == "weather"
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    again: Any = [
        *ASKED,
        whole.choices[0].message.model_dump(),  # as clients do
        {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"},
    ]
    assert client.chat.completions.create(model=NAME, messages=again, max_tokens=2).choices


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"messages": []}, "at least 1 item"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "text"),
        ({"messages": [{"role": "user", "content": "x " * 3000}]}, "limit is 1023"),
        ({"tool_choice": "required"}, "needs tools"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "rm"}}},
            "none of the tools",
        ),
        ({"messages": [*ASKED, HALF_A_PAIR]}, "no JSON object"),
        ({"top_logprobs": 3}, "logprobs=true"),
        ({"response_format": {"type": "json_schema"}}, "go together"),
    ],
)
def test_chat_that_cannot_be_is_refused_with_the_reason(
    server: Server, wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        server.openai().chat.completions.create(
            **({"model": NAME, "messages": ASKED, "max_tokens": 4} | wrong)
        )


@pytest.mark.slow
def test_chat_of_a_model_without_a_template_is_refused(start_server: StartServer) -> None:
    server = start_server(SHIPPED)
    with pytest.raises(openai.BadRequestError, match="no chat template") as error:
        server.openai().chat.completions.create(model=NAME, messages=ASKED)
    assert error.value.code == "no_chat_template"
    with pytest.raises(anthropic.BadRequestError, match="no chat template"):
        server.anthropic().messages.create(
            model=NAME, messages=[{"role": "user", "content": "x"}], max_tokens=3
        )
    server.stop()


# -- Anthropic's


def test_message_is_the_chat_completion_of_the_same_conversation(server: Server) -> None:
    chat = server.openai().chat.completions.create(model=NAME, messages=ASKED, max_tokens=12, temperature=0)
    client = server.anthropic()
    asked: Any = {"model": NAME, "system": "Be brief.", "messages": ASKED[1:], "max_tokens": 12} | GREEDY
    answer = client.messages.create(**asked)
    assert answer.content[0].type == "text"
    assert answer.content[0].text == chat.choices[0].message.content
    assert answer.stop_reason == "max_tokens"
    assert chat.usage is not None
    cached = answer.usage.cache_read_input_tokens or 0
    assert answer.usage.input_tokens + cached == chat.usage.prompt_tokens
    assert answer.usage.output_tokens == 12
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == answer.content[0].text
        assert stream.get_final_message().usage.output_tokens == 12
    counted = client.messages.count_tokens(model=NAME, system="Be brief.", messages=ASKED[1:])
    assert counted.input_tokens == chat.usage.prompt_tokens


def test_message_says_which_sequence_stopped_it(server: Server) -> None:
    asked: Any = {"model": NAME, "messages": ASKED[1:], "max_tokens": 100} | GREEDY
    client = server.anthropic()
    whole = client.messages.create(**asked)
    assert whole.content[0].type == "text"
    stop = whole.content[0].text[5:8]
    stopped = client.messages.create(**asked, stop_sequences=["never ever", stop])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)


def test_message_with_tools_calls_one_and_takes_its_result(server: Server) -> None:
    client = server.anthropic()
    tools: Any = [{"name": "weather", "description": "Now", "input_schema": SCHEMA}]
    asked: Any = {"model": NAME, "messages": ASKED[1:], "tools": tools, "max_tokens": 60}
    asked["tool_choice"] = {"type": "tool", "name": "weather"}
    answer = client.messages.create(**asked)
    [block] = answer.content
    assert block.type == "tool_use" and answer.stop_reason == "tool_use"
    assert block.input["city"] in ("Oslo", "Rome")
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert final.content[0].type == "tool_use" and final.content[0].input["city"] in ("Oslo", "Rome")
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "12 degrees"}
    asked["messages"] = [*ASKED[1:], {"role": "assistant", "content": answer.content}]
    asked["messages"].append({"role": "user", "content": [result]})
    asked["tool_choice"] = {"type": "none"}
    assert client.messages.create(**asked).stop_reason in ("end_turn", "max_tokens")


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        ({"model": "claude"}, anthropic.NotFoundError, "not served here"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        ({"max_tokens": 9999}, anthropic.BadRequestError, "longer than this server's limit"),
        ({"extra_body": {"temperature": 3}}, anthropic.BadRequestError, "temperature"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            anthropic.BadRequestError,
            "image",
        ),
        ({"extra_body": {"thinking": {"type": "enabled"}}}, anthropic.BadRequestError, "thinking"),
        ({"extra_body": {"wishes": 3}}, anthropic.BadRequestError, "does not know the parameter wishes"),
    ],
)
def test_message_that_cannot_be_is_refused_in_the_form_of_the_api(
    server: Server, wrong: dict[str, Any], kind: type[anthropic.APIStatusError], words: str
) -> None:
    with pytest.raises(kind, match=words) as error:
        server.anthropic().messages.create(
            **({"model": NAME, "messages": ASKED[1:], "max_tokens": 4} | wrong)
        )
    assert isinstance(error.value.body, dict) and error.value.body["type"] == "error"
