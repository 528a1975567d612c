"""A conversation as the prompt a model was trained on, by the template that comes with its tokenizer.

Templates are Jinja programs written by strangers: they run sandboxed, over plain data, with the few names that
transformers gives them, so that the text is the one of its `apply_chat_template`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from hub_loader.errors import ModelError, UsageError

from .config import read_json
from .quant.gguf_file import GGUFFile, open_gguf

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class ChatTemplate:
    """The templates of a model by name ("default" among them, or "tool_use"), and the texts of its special tokens."""

    source: str
    templates: Mapping[str, str]
    special_tokens: Mapping[str, str]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation; it has its special tokens already, so encode it without adding any.

        messages: `{"role": …, "content": …}`, and what else the template reads; keys that are None count as
        absent. tools: JSON schemas of functions. add_generation_prompt: end where the assistant is to speak.
        variables: what the template reads beside these, such as enable_thinking.

        Raises:
            ModelError: the template is missing or malformed.
            UsageError: no message, or the template refuses the conversation.
        """
        if not messages:
            raise UsageError("the conversation is empty: give at least one message")
        name = "tool_use" if tools is not None and "tool_use" in self.templates else "default"
        if name not in self.templates:
            found = ", ".join(self.templates) or "none"
            raise ModelError(
                f"{self.source} has no default chat template ({found}): prompt it with plain text"
            )
        settings = {**self.special_tokens, **_plain(variables)}
        settings["messages"] = [_message(message) for message in messages]
        settings["tools"] = None if tools is None else _plain(tools)
        settings |= {"documents": settings.get("documents"), "add_generation_prompt": add_generation_prompt}
        try:
            return _compile(self.templates[name]).render(settings)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"{self.source}: the chat template is malformed (line {error.lineno}: {error.message})"
            ) from None
        except Exception as error:  # a stranger's program over the caller's data: any exception is its answer
            raise UsageError(
                f"the chat template of {self.source} refuses the conversation: {error}"
            ) from None


def render_chat(
    folder: str | Path,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """`ChatTemplate.render` with the template of a model folder."""
    return load_template(Path(folder)).render(messages, tools, add_generation_prompt, **variables)


def load_template(folder: Path) -> ChatTemplate:
    """The templates of a model folder or GGUF file; read again only after a file of them has changed.

    Raises:
        ModelError: a file is malformed. A model without a template is refused when one is asked for.
    """
    if folder.suffix == ".gguf":
        return _of_gguf(open_gguf(folder))
    files = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    files += [folder / "tokenizer_config.json", folder / "special_tokens_map.json"]
    return _load(folder, tuple((file, file.stat().st_mtime_ns) for file in files if file.is_file()))


@lru_cache(maxsize=16)
def _load(folder: Path, stamps: tuple[tuple[Path, int], ...]) -> ChatTemplate:
    files = {file.relative_to(folder).as_posix(): file for file, _ in stamps}
    config = read_json(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
    legacy = read_json(files["special_tokens_map.json"]) if "special_tokens_map.json" in files else {}
    templates = _configured(config.get("chat_template"), folder)
    for name, file in files.items():
        if file.suffix == ".jinja":
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(f"{file} cannot be read ({error}): fetch it again") from None
            templates["default" if name == "chat_template.jinja" else file.stem] = text
    return ChatTemplate(str(folder), templates, _special_tokens(legacy) | _special_tokens(config))


def _of_gguf(file: GGUFFile) -> ChatTemplate:
    texts, found = file.field("tokenizer.ggml.tokens") or [], file.field("tokenizer.chat_template")
    ids = {name: file.field(f"tokenizer.ggml.{name}_id") for name in SPECIAL}
    special = {
        name: texts[number] for name, number in ids.items() if number is not None and number < len(texts)
    }
    return ChatTemplate(str(file.path), {} if found is None else {"default": found}, special)


def _configured(found: Any, folder: Path) -> dict[str, str]:
    """The templates in tokenizer_config.json: one text, or a list of objects with name and template."""
    if found is None:
        return {}
    if isinstance(found, str):
        return {"default": found}
    try:
        return {str(item["name"]): str(item["template"]) for item in found}
    except (TypeError, KeyError):
        raise ModelError(
            f"{folder / 'tokenizer_config.json'}: chat_template is neither a text nor a list of named ones"
        ) from None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the special tokens; each is written as a text or as an object with its content."""
    found = {}
    for name in SPECIAL:
        value = config.get(name)
        value = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(value, str):
            found[name] = value
    return found


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: no key that is None, and its reasoning under every name in use."""
    if not isinstance(message, Mapping):
        raise UsageError(f"a message is {type(message).__name__}, expected an object with role and content")
    plain: dict[str, Any] = _plain({key: value for key, value in message.items() if value is not None})
    reasoning = next((plain[name] for name in REASONING if name in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _plain(value: Any) -> Any:
    """`value` out of JSON's types alone, so that a template finds no method on it; the rest becomes a word."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):  # a subclass may bring methods along
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


# -- the environment


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training; here it is only what is inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _SafeNamespace(Namespace):
    """Jinja's namespace, on which no name with an underscore in front can be set."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that a template may have an attribute called self
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not have an attribute {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on it; Jinja's own filter would escape it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": _SafeNamespace,
    }
    return environment.from_string(template)
