"""A conversation renders to the text that transformers makes of it, and a template can do no harm."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from engine_models import write_tokenizer
from transformers import PreTrainedTokenizerFast

from engine.chat import render_chat
from hub_loader.errors import ModelError, UsageError

# Each is written after how a family's template works: headers, tools, thoughts, turns that alternate.
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' or message.role == 'ipython' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {{- message.content | tojson if message.content is mapping else message.content }}<|eot_id|>
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}}<|eot_id|>
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}{{ message.content | trim }}<|eot_id|>
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

QWEN3 = """{%- set ns = namespace(asked=messages | length - 1, searching=true) %}
{%- if tools %}
{{- '<|im_start|>system\\n# Tools\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages[::-1] %}
    {%- if ns.searching and message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set ns.searching = false %}
        {%- set ns.asked = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set thought = message.reasoning_content if message.reasoning_content is string else '' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if thought and loop.index0 > ns.asked %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {% generation %}
        {{- (message.content or '').lstrip('\\n') }}
        {%- endgeneration %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

MISTRAL = """{{ bos_token }}{% set turns = messages %}
{% if messages[0].role == 'system' %}
    {% set system = messages[0].content %}
    {% set turns = messages[1:] %}
{% endif %}
{% for message in turns %}
    {% if message.role not in ('user', 'assistant') %}{% continue %}{% endif %}
    {% if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message.role == 'user' %}
        {% if loop.last and tools %}
[AVAILABLE_TOOLS] {{ tools | map(attribute='function') | list | tojson }}[/AVAILABLE_TOOLS]{% endif %}
        [INST] {% if loop.last and system is defined %}{{ system }}

{% endif %}{{ message.content }}[/INST]
    {% else %}
        {{ message.content }}{{ eos_token }}
    {% endif %}
{% endfor %}"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Today's <weather> & more, in °C",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
CALL = {"type": "function", "id": "call12345", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
PLAIN = [{"role": "user", "content": " Where is 'it' <b>?  "}]
SYSTEM = [{"role": "system", "content": "Be brief.\n"}, *PLAIN]
LONG = [*SYSTEM, {"role": "assistant", "content": "Here."}, {"role": "user", "content": "Sure?\n\n日本"}]
THOUGHTS = [*LONG, {"role": "assistant", "content": "\nYes.", "reasoning": "Hm.\n"}]
CALLED = [
    *PLAIN,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "call12345", "content": "21"},
]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(template, in_config=False) -> a folder with a tokenizer that transformers reads."""

    def make(template: Any, in_config: bool = False, **settings: Any) -> Path:
        write_tokenizer(tmp_path)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": {"__type": "AddedToken", "content": "<s>", "special": True},
            "eos_token": "</s>",
        } | settings
        if in_config:
            config["chat_template"] = template
        else:
            (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return tmp_path

    return make


def by_transformers(folder: Path, messages: Any, **options: Any) -> str:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


@pytest.mark.parametrize("template", [LLAMA3, QWEN3, MISTRAL], ids=["llama3", "qwen3", "mistral"])
@pytest.mark.parametrize(
    "messages", [PLAIN, SYSTEM, LONG, THOUGHTS], ids=["plain", "system", "long", "thoughts"]
)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no-tools", "tools"])
@pytest.mark.parametrize("prompted", [True, False])
def test_conversation_renders_as_by_transformers(
    write: Write, template: str, messages: Any, tools: Any, prompted: bool
) -> None:
    folder = write(template)
    expected = by_transformers(folder, messages, tools=tools, add_generation_prompt=prompted)
    assert render_chat(folder, messages, tools, prompted) == expected
    assert len(expected) > 20


@pytest.mark.parametrize("template", [LLAMA3, QWEN3], ids=["llama3", "qwen3"])
def test_tool_calls_and_their_answers_render_as_by_transformers(write: Write, template: str) -> None:
    folder = write(template)
    text = render_chat(folder, CALLED, TOOLS)
    assert text == by_transformers(folder, CALLED, tools=TOOLS, add_generation_prompt=True)
    assert '{"city": "Köln"}' in text
    assert "<weather> &" in text


@pytest.mark.parametrize("thinking", [True, False])
def test_further_variables_reach_the_template(write: Write, thinking: bool) -> None:
    folder = write(QWEN3)
    text = render_chat(folder, PLAIN, enable_thinking=thinking)
    assert text == by_transformers(folder, PLAIN, add_generation_prompt=True, enable_thinking=thinking)
    assert ("</think>" in text) != thinking


def test_the_date_is_todays(write: Write) -> None:
    assert datetime.now().strftime("%d %b %Y") in render_chat(write(LLAMA3), PLAIN)


def test_template_in_the_tokenizers_config_is_used(write: Write) -> None:
    folder = write(MISTRAL, in_config=True)
    assert render_chat(folder, LONG) == by_transformers(folder, LONG, add_generation_prompt=True)


def test_template_of_its_own_file_goes_before_the_one_in_the_config(write: Write) -> None:
    folder = write(MISTRAL, chat_template="old")
    assert render_chat(folder, LONG) == by_transformers(folder, LONG, add_generation_prompt=True) != "old"


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no-tools", "tools"])
def test_named_templates_then_the_one_for_tools_serves_tools(write: Write, tools: Any) -> None:
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | length }}"},
    ]
    folder = write(named, in_config=True)
    expected = by_transformers(folder, PLAIN, tools=tools)
    assert render_chat(folder, PLAIN, tools) == expected == ("1" if tools else "plain")


def test_template_that_changed_on_disk_is_read_again(write: Write) -> None:
    folder = write("first")
    assert render_chat(folder, PLAIN) == "first"
    (folder / "chat_template.jinja").write_text("second")
    os.utime(folder / "chat_template.jinja", ns=(1, 1))
    assert render_chat(folder, PLAIN) == "second"


def test_conversation_that_the_template_refuses_then_its_words_reach_the_caller(write: Write) -> None:
    with pytest.raises(UsageError, match=re.escape("roles must alternate user/assistant")):
        render_chat(write(MISTRAL), [*PLAIN, *PLAIN])


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "the conversation is empty"),
        (["hello"], "a message is str, expected an object"),
        ([{"role": "user"}], "refuses the conversation"),
    ],
)
def test_malformed_messages_are_refused(write: Write, messages: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        render_chat(write("{{ messages[0].content + '!' }}"), messages)


def test_model_without_a_template_is_refused_when_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no default chat template"):
        render_chat(tmp_path, PLAIN)


@pytest.mark.parametrize("template", ["{% for %}", "{% generation %}"])
def test_malformed_template_is_refused_with_its_line(write: Write, template: str) -> None:
    with pytest.raises(ModelError, match="malformed .line 1"):
        render_chat(write(template), PLAIN)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ dict.__subclasses__() }}",
        "{{ range(10000000) | length }}",
    ],
)
def test_template_that_reaches_beyond_the_conversation_is_refused(write: Write, attack: str) -> None:
    with pytest.raises(UsageError, match="refuses the conversation"):
        render_chat(write(attack), PLAIN)


def test_object_with_methods_becomes_a_word(write: Write, tmp_path: Path) -> None:
    folder = write("{{ messages[0].content }}")
    assert render_chat(folder, [{"role": "user", "content": tmp_path}]) == f"<{type(tmp_path).__name__}>"
