"""A call in a thread of its own, for two requests at once; what it raises is raised where its result is wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

_T = TypeVar("_T")


class InBackground(Generic[_T]):
    """`call`, begun at once; whatever it raises, `result` raises. Where no thread can be had, it is done at once."""

    def __init__(self, call: Callable[[], _T]) -> None:
        self._outcome: tuple[_T | None, BaseException | None] = (None, None)
        thread = threading.Thread(target=self._run, args=(call,), daemon=True, name="khub-background")
        self._thread: threading.Thread | None = thread
        try:
            thread.start()
        except RuntimeError:  # the system has none left, or the interpreter is ending
            self._thread = None
            self._run(call)

    def wait(self) -> None:
        """Return when it has ended."""
        if self._thread is not None:
            self._thread.join()

    def result(self) -> _T:
        """What it returned."""
        self.wait()
        value, error = self._outcome
        if error is not None:
            raise error
        return cast("_T", value)

    def _run(self, call: Callable[[], _T]) -> None:
        try:
            self._outcome = (call(), None)
        except BaseException as error:  # handed on by `result`
            self._outcome = (None, error)
