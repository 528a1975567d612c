"""Guided decoding: which tokens keep a text on its way to match a JSON schema or a regular expression.

The grammar's work is llguidance's (https://github.com/guidance-ai/llguidance), extra `[guided]`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hub_loader.errors import MissingExtraError, UsageError

from .params import SamplingParams


class Guides:
    """Makes guides for one model's tokens; the library is loaded when the first is asked for."""

    def __init__(self, tokenizer_json: Callable[[], str], stop_tokens: frozenset[int]) -> None:
        self._read = tokenizer_json
        self._stop = stop_tokens
        self._tokenizer: Any = None
        self._reading = threading.Lock()

    def make(self, params: SamplingParams) -> TokenGuide | None:
        """A guide for what `params` asks for; None if nothing. Any thread may call it.

        Raises:
            UsageError: the schema or expression cannot be followed.
            MissingExtraError: llguidance is not installed.
        """
        if not params.guided:
            return None
        try:
            import llguidance
        except ModuleNotFoundError:
            raise MissingExtraError(
                "guided decoding needs 'llguidance', which is missing: pip install 'kernel-hub[guided]'"
            ) from None
        with self._reading:
            if self._tokenizer is None:
                stop = min(self._stop, default=None)
                self._tokenizer = llguidance.LLTokenizer(self._read(), eos_token=stop)
        try:
            if params.regex is not None:
                grammar = llguidance.LLMatcher.grammar_from_regex(params.regex)
            else:
                schema = params.json_schema
                given = schema if isinstance(schema, str) else json.dumps(schema)
                grammar = llguidance.LLMatcher.grammar_from_json_schema(given)
        except ValueError as error:
            raise UsageError(f"the json_schema or regex cannot be followed: {error}") from None
        matcher = llguidance.LLMatcher(self._tokenizer, grammar)
        if matcher.is_error():
            raise UsageError(f"the json_schema or regex cannot be followed: {matcher.get_error()}")
        return TokenGuide(matcher)


class TokenGuide:
    """One line's way through its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def rejected(self, vocabulary: int) -> torch.Tensor:
        """True, bool [vocabulary], for each token that may not come next.

        Raises:
            UsageError: none may, or the grammar has become too large to follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[:vocabulary].astype(bool)
        refused = np.ones(
            vocabulary, dtype=bool
        )  # the model may have more rows than its tokenizer has tokens
        refused[: len(allowed)] = ~allowed
        if self._matcher.is_error():  # it then allows the end alone, as if the text were complete
            raise UsageError(f"the json_schema or regex cannot be followed to its end: {self._complaint()}")
        if refused.all():
            raise UsageError("the json_schema or regex allows none of the model's tokens at some place")
        return torch.from_numpy(refused)

    def advance(self, token: int) -> None:
        """The token was chosen.

        Raises:
            UsageError: the grammar does not allow it.
        """
        if not self._matcher.consume_token(token):
            raise UsageError(f"token {token} leaves the grammar: {self._complaint()}")

    @property
    def done(self) -> bool:
        """Whether the text is complete and nothing may follow."""
        return bool(self._matcher.is_stopped())

    def _complaint(self) -> str:
        """The first line of the library's error, without the dump of its state."""
        return str(self._matcher.get_error()).partition("\n")[0]

    def copy(self) -> TokenGuide:
        """The same place in the grammar, for another branch."""
        return TokenGuide(self._matcher.deep_copy())
