"""A bar that shows how far a batch of requests is, and how many tokens a second it makes."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm

from .output import Delta


class Progress:
    """Counts what steps give. `shown` None: only where standard error is a terminal."""

    def __init__(self, requests: int, shown: bool | None) -> None:
        self._bar = tqdm(
            total=requests,
            unit="request",
            disable=None if shown is None else not shown,
            file=sys.stderr,
            mininterval=0.2,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        self._tokens = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def take(self, deltas: Iterable[Delta]) -> None:
        """Count the tokens and the finished continuations of a step."""
        finished = 0
        for delta in deltas:
            self._tokens += len(delta.choices)
            finished += delta.completion is not None
        elapsed = self._bar.format_dict["elapsed"]
        if elapsed:
            self._bar.set_postfix_str(f"{self._tokens / elapsed:.1f} tok/s", refresh=False)
        self._bar.update(finished)
