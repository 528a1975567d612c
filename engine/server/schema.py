"""What OpenAI's APIs are asked with, as far as this server follows it; anything else is refused, not overlooked.

Beside their own parameters those that vLLM's users add: top_k, min_p, repetition_penalty, ignore_eos,
stop_token_ids, priority, structured_outputs.
Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hub_loader.errors import UsageError

from ..params import MAX_LOGPROBS, SamplingParams

_Text = Annotated[str, Field(min_length=1, max_length=1000)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
_Item = TypeVar("_Item")
# The first wrong item is enough: a body of millions would be as many complaints.
Several = Annotated[list[_Item], Field(fail_fast=True)]


class Strict(BaseModel):
    """Types as JSON has them, no parameter that nobody reads, every number finite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(Strict):
    """How a stream ends; padding against eavesdroppers is not added."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Structured(Strict):
    """What the text has to match: one of them."""

    json_schema: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = Field(default=None, max_length=10_000)


class Sampling(Strict):
    """Parameters that completions and chat completions share."""

    model: str
    n: int | None = Field(default=None, ge=1, le=128)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=1024)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 64)
    stop: _Text | Annotated[Several[_Text], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # vLLM's
    top_k: int | None = Field(default=None, ge=-1, lt=1 << 31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    ignore_eos: bool = False
    stop_token_ids: Several[Token] | None = Field(default=None, max_length=128)
    priority: int = Field(default=0, ge=0, le=1000)  # who sends it may only step back
    structured_outputs: Structured | None = None
    # Of no consequence here
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _usage_only_of_streams(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are only for stream=true: leave them out")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a choice."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def params(
        self, max_tokens: int, logprobs: int | None, json_schema: dict[str, Any] | None = None
    ) -> SamplingParams:
        """For the engine. Raises UsageError for what it refuses."""
        structured = self.structured_outputs or Structured()
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(0, self.top_k or 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            ignore_stop=self.ignore_eos,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=_biases(self.logit_bias or {}),
            n=self.n or 1,
            logprobs=logprobs,
            stop=self.stops,
            stop_tokens=tuple(self.stop_token_ids or ()),
            priority=self.priority,
            json_schema=structured.json_schema if json_schema is None else json_schema,
            regex=structured.regex,
        )


class CompletionBody(Sampling):
    """POST /v1/completions."""

    prompt: str | Several[str] | Several[Token] | Several[Several[Token]]
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _possible(self) -> CompletionBody:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not drawn from: leave it out, or set it to n")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo and logprobs are not given together: leave one of them out")
        return self


class Part(Strict):
    """A part of a message: text, for this server serves no images."""

    type: Literal["text"]
    text: str


class FunctionCall(Strict):
    """Which function, and its arguments as JSON in a string."""

    name: str
    arguments: str


class ToolCall(Strict):
    """What an assistant's earlier message called."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Several[Part] | None = None
    name: str | None = None
    tool_calls: Several[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    # What a client that hands back an answer of ours, as it came, sends along.
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class FunctionTool(Strict):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool is a function."""

    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Strict):
    """A function by its name."""

    name: str


class NamedTool(Strict):
    """The tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Strict):
    """A named JSON schema."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """Free text, any JSON object, or what a schema describes."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("type json_schema and the schema go together")
        return self

    @property
    def guide(self) -> dict[str, Any] | None:
        """The schema to follow."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: Several[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Several[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _possible(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs are only reported with logprobs=true")
        chosen = self.tool_choice
        if chosen not in (None, "none") and not self.tools:
            raise ValueError("tool_choice needs tools to choose from")
        if isinstance(chosen, NamedTool) and chosen.function.name not in {
            t.function.name for t in self.tools or ()
        }:
            raise ValueError(f"tool_choice names {chosen.function.name!r}, which is none of the tools")
        guided = self.response_format is not None and self.response_format.guide is not None
        if guided + (self.structured_outputs is not None) + (chosen not in (None, "none", "auto")) > 1:
            raise ValueError(
                "of response_format, structured_outputs and a tool that has to be called, give one"
            )
        return self


def _biases(given: dict[str, float]) -> dict[int, float]:
    if not all(key.isascii() and key.isdecimal() and len(key) < 10 for key in given):
        raise UsageError("logit_bias is for token ids: name them by number")
    return {int(key): value for key, value in given.items()}
