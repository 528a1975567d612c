"""Imports run without passes of the garbage collector, which is as it was afterwards."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import pytest

import hub_loader
from hub_loader.uncollected import uncollected


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    yield
    gc.enable()


def test_collector_rests_in_the_block_and_runs_after_it() -> None:
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_collector_that_the_user_turned_off_stays_off() -> None:
    gc.disable()
    with uncollected():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_collector_runs_after_an_import_that_fails() -> None:
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()


def test_collector_runs_after_a_call_that_is_refused() -> None:
    with pytest.raises(hub_loader.UsageError):
        hub_loader.get_kernel("no repository")
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_collector_runs_in_a_process_forked_while_another_thread_imports() -> None:
    inside, done = threading.Event(), threading.Event()

    def importing() -> None:
        with uncollected():
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=importing)
    thread.start()
    try:
        assert inside.wait(60)
        if (child := os.fork()) == 0:
            os._exit(0 if gc.isenabled() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        done.set()
        thread.join()
