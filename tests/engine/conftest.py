"""Small Llama checkpoints with random weights, in the Hugging Face format, made once per test run."""

from __future__ import annotations

import json
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import SHAPES, MakeModel, write_tokenizer
from serving import Server, StartServer, chatting, start
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Shapes this small gain nothing from threads, and threads that wait for a busy core lose much."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """make_model("name", **LlamaConfig overrides) -> folder; the same name gives the same folder."""
    made: dict[str, Path] = {}

    def make(name: str = "grouped-heads", shards: str = "5GB", **overrides: Any) -> Path:
        if name not in made:
            settings: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
            settings |= {"intermediate_size": 160, "eos_token_id": 5}
            settings |= SHAPES.get(name, {}) | overrides
            # The same weights whatever ran before.
            torch.manual_seed(zlib.crc32(f"{name}{settings}".encode()))
            config = LlamaConfig(
                vocab_size=256,
                hidden_size=96,
                num_hidden_layers=3,
                max_position_embeddings=256,
                **settings,
            )
            model = LlamaForCausalLM(config)
            with torch.no_grad():
                for parameter in model.parameters():  # the default spread gives nearly tied logits
                    parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
            made[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(made[name], max_shard_size=shards)
            write_tokenizer(made[name])
        return made[name]

    return make


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Start servers on free ports; those still running are killed at the end."""
    started: list[Server] = []

    def start_one(folder: Path, *arguments: str | Path, **environment: str) -> Server:
        errors = tmp_path_factory.mktemp("server") / "stderr"
        started.append(start(folder, errors, *arguments, **environment))
        return started[-1]

    yield start_one
    for each in started:
        if each.process.poll() is None:
            each.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with a chat template."""
    return chatting(tmp_path_factory.mktemp("chatting"))


@pytest.fixture(scope="session")
def server(start_server: StartServer, chat_model: Path) -> Server:
    """One server of the shipped model for all tests that leave it as it was."""
    return start_server(chat_model)


@pytest.fixture
def broken_model(make_model: MakeModel, tmp_path: Path) -> Path:
    """A copy of a whole model folder, for a test to break."""
    for file in make_model().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def edit_config(broken_model: Path) -> Callable[..., Path]:
    def edit(**changes: Any) -> Path:
        path = broken_model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return broken_model

    return edit
