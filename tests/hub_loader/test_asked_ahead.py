"""The hub is asked while a program imports what follows; what comes of it is for the call that asked, and no other."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from packages import python_package
from static_hub import StaticHub

import hub_loader
from hub_loader import get_kernel, pinned
from hub_loader.background import InBackground

REFUSED = {"trust_remote_code": "everybody"}  # said before the hub's answer is looked at


def publish(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7).folder)


def refuse(**options: object) -> None:
    with pytest.raises(hub_loader.UsageError):
        get_kernel("org/demo", version=1, **options)  # type: ignore[arg-type]


def test_call_that_is_refused_when_the_hub_was_down_then_the_next_call_asks_again(
    hub: StaticHub, tmp_path: Path
) -> None:
    publish(hub, tmp_path)
    hub.status["index.json"] = (404, "RevisionNotFound")
    refuse(**REFUSED)
    hub.status.clear()
    assert get_kernel("org/demo", version=1).value() == 7


def test_call_that_is_refused_leaves_no_answer_behind(hub: StaticHub, tmp_path: Path) -> None:
    publish(hub, tmp_path)
    refuse(**REFUSED)
    assert not pinned._asked


def test_call_when_no_thread_can_be_had_then_loads_all_the_same(
    hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, tmp_path)

    start = threading.Thread.start

    def refuses_ours(thread: threading.Thread) -> None:
        if thread.name == "khub-background":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuses_ours)
    assert get_kernel("org/demo", version=1).value() == 7


def test_calls_of_many_threads_when_the_hub_is_asked_ahead_then_all_get_one_module(
    hub: StaticHub, tmp_path: Path
) -> None:
    publish(hub, tmp_path)
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(get_kernel("org/demo", version=1))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({id(module) for module in found}) == 1
    assert not pinned._asked


def test_result_of_what_ends_its_thread_is_raised() -> None:
    with pytest.raises(SystemExit):
        InBackground(lambda: sys.exit(3)).result()
