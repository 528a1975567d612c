"""Log probabilities as OpenAI's two APIs write them. Pure but for the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..sampler import Choice
from ..tokenizer import Tokenizer

_LOWEST = -9999.0  # JSON has no minus infinity


def of_chat(tokenizer: Tokenizer, choices: Sequence[Choice]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""
    content = []
    for choice in choices:
        top = [_token(tokenizer, token, logprob) for token, logprob in choice.top]
        content.append(_token(tokenizer, choice.token, choice.logprob) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def of_completion(tokenizer: Tokenizer, choices: Sequence[Choice], offset: int) -> dict[str, Any]:
    """`choices[].logprobs` of a completion; `offset`: characters of its text before these tokens."""
    texts = [tokenizer.decode([choice.token]) for choice in choices]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [_finite(choice.logprob) for choice in choices],
        "top_logprobs": [
            {tokenizer.decode([token]): _finite(logprob) for token, logprob in choice.top} or None
            for choice in choices
        ],
        "text_offset": offsets,
    }


def _token(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    text = tokenizer.decode([token])
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}


def _finite(logprob: float | None) -> float:
    return _LOWEST if logprob is None else max(logprob, _LOWEST)
