"""One HTTP request's prompts on their way through the engine, as the event loop sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from ..output import Completion, Delta
from ..params import SamplingParams

Event = tuple[int, Delta]
"""A choice's number, over all prompts and their `n` continuations, and what a step added to it."""


@dataclass
class Times:
    """Seconds of `time.monotonic`. `started`: of the first step that computed something of it."""

    created: float
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None


class Job:
    """Prompts that were handed to the engine together. Every method belongs to the event loop's thread."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        created: float,
        abort: Callable[[Job], None],
    ) -> None:
        self.prompts = prompts
        self.params = params
        self.times = Times(created)
        self.completions: dict[int, Completion] = {}
        self.failure: Exception | None = None
        self.generated = 0
        self.given_up = False  # read by the engine's thread, which then adds no more of it
        self._abort = abort
        self._events: list[Event] = []
        self._accepted = False
        self._news = asyncio.Event()

    @property
    def choices(self) -> int:
        """How many continuations there will be."""
        return len(self.prompts) * self.params.n

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.failure is not None or len(self.completions) == self.choices

    async def accepted(self) -> None:
        """Wait until the engine has queued every prompt. Raises what it refused one with."""
        while not (self._accepted or self.over):
            await self._wait()
        if self.failure is not None:
            raise self.failure

    async def batches(self, pause: float | None = None) -> AsyncIterator[list[Event]]:
        """What came since the last time, until all choices ended; an empty list after `pause` idle seconds.

        Raises:
            Exception: the engine failed on it.
        """
        while True:
            if self._events:
                events, self._events = self._events, []
                yield events
            elif self.over:
                break
            elif not await self._wait(pause):
                yield []
        if self.failure is not None:
            raise self.failure

    async def finished(self) -> list[Completion]:
        """Wait for all choices; in the order of their numbers. Raises as `batches`."""
        async for _ in self.batches():
            pass
        return [self.completions[choice] for choice in range(self.choices)]

    def abort(self) -> None:
        """Give up what is unfinished: its blocks are freed, its choices end with the reason "abort"."""
        if not (self.over or self.given_up):
            self.given_up = True
            self._abort(self)

    # -- told by the worker

    def accept(self) -> None:
        """The engine has queued it."""
        self._accepted = True
        self._news.set()

    def push(self, events: Sequence[Event]) -> None:
        """A step added something."""
        self._events += events
        for choice, delta in events:
            self.generated += len(delta.choices)
            if delta.completion is not None:
                self.completions[choice] = delta.completion
        self._news.set()

    def fail(self, failure: Exception) -> None:
        """Nothing more will come."""
        if not self.over:
            self.failure = failure
            self._news.set()

    async def _wait(self, seconds: float | None = None) -> bool:
        """Until there is news; False if the time was up first."""
        self._news.clear()
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True
