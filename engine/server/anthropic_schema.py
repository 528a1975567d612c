"""What Anthropic's Messages API is asked with, as far as this server follows it; anything else is refused.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .schema import FunctionTool, Several, Strict

_Text = Annotated[str, Field(min_length=1, max_length=1000)]


class TextBlock(Strict):
    """Text; where it may be cached and what it cites are of no consequence here."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None
    citations: Any = None


class ToolUseBlock(Strict):
    """What the assistant called."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: dict[str, Any] | None = None
    caller: Any = None
    toolset_name: None = None  # clients send it back so, with what they were given


class ToolResultBlock(Strict):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Several[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: dict[str, Any] | None = None


Block = Annotated[TextBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Turn(Strict):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Several[Block]


class MessagesTool(Strict):
    """A tool that the client runs; `input_schema` is a JSON schema."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    cache_control: dict[str, Any] | None = None

    def as_function(self) -> dict[str, Any]:
        """In OpenAI's form, which templates read."""
        function = FunctionTool(name=self.name, description=self.description, parameters=self.input_schema)
        return {"type": "function", "function": function.model_dump(exclude_none=True)}


class ToolChoice(Strict):
    """Which tool has to be called, if one."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class NoThinking(Strict):
    """Thinking is not asked for."""

    type: Literal["disabled"]


class Counted(Strict):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Several[Turn] = Field(min_length=1)
    system: str | Several[TextBlock] | None = None
    tools: Several[MessagesTool] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    thinking: NoThinking | None = None
    cache_control: dict[str, Any] | None = None  # what begins alike is shared in any case

    @model_validator(mode="after")
    def _possible(self) -> Counted:
        choice = self.tool_choice
        if choice is None or choice.type in ("auto", "none"):
            return self
        names = {tool.name for tool in self.tools or ()}
        if not names or (choice.type == "tool" and choice.name not in names):
            raise ValueError("tool_choice asks for a call of what is none of the tools")
        return self

    @property
    def choice(self) -> str:
        """As `make_prompt` takes it."""
        chosen = self.tool_choice
        if chosen is None or chosen.type in ("auto", "none"):
            return chosen.type if chosen else "auto"
        return "required" if chosen.type == "any" else str(chosen.name)


class MessagesBody(Counted):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1)
    stop_sequences: Several[_Text] | None = Field(default=None, max_length=16)
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, lt=1 << 31)
    top_p: float | None = Field(default=None, gt=0, le=1)
    # Of no consequence here
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
