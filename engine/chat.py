"""A conversation as the prompt a model was trained on, by the template that comes with its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hub_loader.errors import ModelError, UsageError

from .config import read_json


def render_chat(
    folder: str | Path,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The prompt of a conversation; it has its special tokens already, so encode it without adding any.

    Raises:
        ModelError: the model has no template.
        UsageError: the template refuses the conversation.
    """
    folder = Path(folder)
    file, config_file = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if not isinstance(template, str):
        raise ModelError(f"{folder} has no chat template: prompt it with plain text")

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    names = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    try:
        return environment.from_string(template).render(
            messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, **names
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise UsageError(f"the chat template of {folder} refuses the conversation: {error}") from None
