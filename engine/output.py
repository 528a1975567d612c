"""From a line's tokens to its text, piece by piece, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .sampler import Choice
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Completion:
    """A finished continuation of a prompt; `index` numbers those of one request.

    tokens: the generated ids, a stop token included. text: what they say, without special tokens and up to a
    stop text. finish_reason: "stop", "length", "abort" or "error", and then `error` says why nothing more could be
    chosen. choices: with `logprobs`, each token with its log probability and the likeliest beside it. cached_tokens:
    how many of the prompt were in the cache already.
    """

    request_id: int
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    index: int = 0
    choices: tuple[Choice, ...] = ()
    cached_tokens: int = 0
    error: Exception | None = None


@dataclass(frozen=True)
class Delta:
    """What a step added to a line: tokens, and the text that is certain since; `completion` if it ended."""

    request_id: int
    index: int
    choices: tuple[Choice, ...]
    text: str
    completion: Completion | None = None


class TextStream:
    """The text of a line as its tokens come.

    A piece is given out when it can no longer change: not while a character is incomplete, and not while it
    may be the beginning of a stop text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], show_special: bool = False) -> None:
        self._decode = tokenizer.stream(show_special)
        self._show_special = show_special
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._stop = stop
        self._text = ""
        self._given = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """All text so far, up to a stop text."""
        return self._text

    def push(self, token: int) -> str:
        """The text that is certain now and was not before; `stopped` says whether a stop text came."""
        self._tokens.append(token)
        if not self._stop:
            self._text += self._decode(token)
            return self._give(len(self._text))
        start = max(0, len(self._text) - max(map(len, self._stop), default=0))
        self._text += self._decode(token)
        found = [place for stop in self._stop if (place := self._text.find(stop, start)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True
            return self._give(len(self._text))
        return self._give(len(self._text) - self._held_back())

    def finish(self) -> str:
        """The rest, when no token follows: half a character becomes U+FFFD."""
        if not self.stopped:
            whole = self._tokenizer.decode(self._tokens, self._show_special)
            if whole.startswith(self._text):
                self._text = whole
        return self._give(len(self._text))

    def _give(self, end: int) -> str:
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _held_back(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        text, end = self._text, len(self._text)
        start = end
        for stop in self._stop:
            at = text.find(stop[0], max(0, end - len(stop) + 1), start)
            while at >= 0 and not stop.startswith(text[at:]):
                at = text.find(stop[0], at + 1, start)
            start = at if at >= 0 else start
        return end - start
