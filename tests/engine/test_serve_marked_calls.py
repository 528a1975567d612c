"""Calls as Mistral's models write them, with markers that are special tokens, through a server and stock clients."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import Server, StartServer
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM

SPECIAL = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
]  # fmt: skip
CALLING = [
    "[/INST]",
    "Well. ",
    "[TOOL_CALLS]",
    ' [{"name": "weather", ',
    '"arguments": {"city": "Oslo"}}',
    "]",
    "</s>",
]
ANSWERING = ["[/TOOL_RESULTS]", "It is", " cold.", "</s>"]
TEMPLATE = (
    "<s>{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS]"
    "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
    "{{ c.function | tojson }}{% endfor %}</s>{% elif m.role == 'tool' %}"
    "[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]{% endif %}{% endfor %}"
)
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
ASKED: Any = [{"role": "user", "content": "How warm is it in Oslo?"}]


def write_parrot(folder: Path, *scripts: list[str]) -> Path:
    """A model that says, after each token of a script, the next one of it."""
    words = [*SPECIAL, *sorted({word for script in scripts for word in script} - set(SPECIAL))]
    places = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(places, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    size = 32
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=size, intermediate_size=size, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, eos_token_id=places["</s>"], bos_token_id=places["<s>"],
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(float("norm" in name))
        model.model.embed_tokens.weight.copy_(torch.eye(len(words), size))
        for script in scripts:
            for word, following in pairwise(script):
                model.lm_head.weight[places[following], places[word]] = 10.0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parrot(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    return start_server(
        write_parrot(tmp_path_factory.mktemp("parrot"), CALLING, ANSWERING), "--name", "parrot"
    )


def test_marked_call_is_found_beside_the_text_whole_and_streamed_and_its_result_is_taken(
    parrot: Server,
) -> None:
    client = parrot.openai()
    asked: Any = {"model": "parrot", "messages": ASKED, "tools": TOOLS, "max_tokens": 30}
    [whole] = client.chat.completions.create(**asked).choices
    assert whole.message.content == "Well. " and whole.finish_reason == "tool_calls"
    [call] = whole.message.tool_calls or []
    assert call.type == "function" and call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    assert re.fullmatch("[0-9a-z]{9}", call.id)
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "Well. "
    [streamed] = [each for chunk in chunks for each in chunk.delta.tool_calls or ()]
    assert streamed.function is not None and streamed.function.arguments == call.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "3 degrees"}
    answer = client.chat.completions.create(**asked | {"messages": [*ASKED, whole.message, result]})
    assert answer.choices[0].message.content == "It is cold."


def test_marked_call_reaches_a_client_of_messages_whole_and_streamed(parrot: Server) -> None:
    client = parrot.anthropic()
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    asked: Any = {"model": "parrot", "messages": ASKED, "tools": tools, "max_tokens": 30}
    whole = client.messages.create(**asked)
    assert [block.type for block in whole.content] == ["text", "tool_use"]
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        assert answer.stop_reason == "tool_use"
        assert answer.content[1].type == "tool_use" and answer.content[1].input == {"city": "Oslo"}
    turn: Any = {"role": "assistant", "content": [block.model_dump() for block in whole.content]}
    result = {"type": "tool_result", "tool_use_id": whole.content[1].id, "content": "3 degrees"}  # type: ignore[union-attr]
    asked["messages"] = [*ASKED, turn, {"role": "user", "content": [result]}]
    [block] = client.messages.create(**asked).content
    assert block.type == "text" and block.text == "It is cold."


def test_markers_are_no_text_where_no_tools_were_given(parrot: Server) -> None:
    answer = parrot.openai().chat.completions.create(model="parrot", messages=ASKED, max_tokens=30)
    assert (answer.choices[0].message.content or "").startswith("Well.  [{")
