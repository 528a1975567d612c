"""`khub serve --workers`: several processes on one address are one hub, and outlive each other."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from crashing import REPO
from khub_process import Hub, StartHub, khub, khub_command, khub_environment
from observed_hub import ObservedHub, Upload, commit_body, end, start_observed, until
from writers import arguments, contents, prepared

from registry.fsck import fsck
from registry.place import Place, open_blobs
from registry.store import Store

pytestmark = pytest.mark.slow

Start = Callable[..., ObservedHub]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server of two workers, and kill it at the end."""
    started: list[ObservedHub] = []

    def begin(*arguments: str) -> ObservedHub:
        started.append(start_observed(tmp_path, "--workers", "2", *arguments))
        return started[-1]

    yield begin
    for hub in started:
        end(hub)


def workers(hub: Hub) -> list[int]:
    """The process ids of its workers."""
    children = Path(f"/proc/{hub.process.pid}/task/{hub.process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def gone(pid: int) -> bool:
    """Whether it ended, if nobody has taken note of that as well."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def refuses(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz")
    except httpx.ConnectError:
        return True
    return False


def test_commits_on_one_parent_when_sent_to_two_workers_at_once_then_one_is_acknowledged(
    start_hub: StartHub, place: Place
) -> None:
    owner = prepared(place).headers
    hub = start_hub(place.data, "--workers", "2", *arguments(place))
    url = f"{hub.url}/api/kernels/{REPO}"
    for _ in range(3):
        head = httpx.get(url).json()["sha"]

        def commit(number: int, head: str = head) -> int:
            first, file = commit_body(f"{head}/{number}", b"x").split(b"\n")
            header = json.loads(first)
            header["value"]["parentCommit"] = head
            body = json.dumps(header).encode() + b"\n" + file
            return httpx.post(f"{url}/commit/main", headers=owner, content=body, timeout=60).status_code

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(commit, range(8))) == [200] + [412] * 7
    counted = httpx.get(f"{hub.url}/metrics").text  # of both workers, whichever is asked
    assert "\nkhub_commits_accepted_total 3.0\n" in counted and "\nkhub_workers 2.0\n" in counted
    assert hub.stop() == 0
    store = Store(place.data, place.database)
    assert len(contents(place, store)) == 3
    assert fsck(store, open_blobs(place, store)).problems == ()


def kill_workers(start: Start, place: Place, rounds: int) -> None:
    writers = prepared(place)
    hub = start(*arguments(place))
    writers.url = hub.url
    with writers.writing():
        for _ in range(rounds):
            before = workers(hub)
            writers.wait_for(5)
            os.kill(before[0], signal.SIGKILL)
            writers.wait_for(5)  # by the other, until there is another
            until(lambda before=before: len({*workers(hub)} - {before[0]}) == 2)
        until(lambda: hub.metrics()["khub_workers"] == 2)
        writers.wait_for(5)
    assert hub.stop() == 0
    assert hub.log.read_text().count("was ended by SIGKILL: another is started") == rounds
    store = Store(place.data, place.database)
    writers.check(contents(place, store))
    assert fsck(store, open_blobs(place, store)).problems == ()
    open_blobs(place, store).clear_temporary()
    assert [path for path in (place.data / "tmp").rglob("*") if path.is_file()] == []


def test_worker_when_killed_while_many_write_then_the_service_goes_on_and_nothing_confirmed_is_lost(
    start: Start, place: Place
) -> None:
    kill_workers(start, place, rounds=1)


@pytest.mark.heavy
def test_workers_when_killed_again_and_again_then_the_service_goes_on_and_nothing_confirmed_is_lost(
    start: Start, place: Place
) -> None:
    kill_workers(start, place, rounds=10)


def test_stop_when_every_process_gets_the_signal_then_an_upload_is_finished_and_the_exit_code_is_0(
    start: Start,
) -> None:
    hub = start()
    upload = Upload(hub)
    for pid in (*workers(hub), hub.process.pid):  # as a terminal or systemd does
        os.kill(pid, signal.SIGINT)
    until(lambda: httpx.get(f"{hub.url}/readyz").status_code == 503)
    assert httpx.get(f"{hub.url}/api/kernels").status_code == 503
    assert upload.finish().startswith(b"HTTP/1.1 200")
    assert hub.process.wait(30) == 0
    assert hub.log.read_text() == ""


def test_second_signal_when_an_upload_is_under_way_then_all_end_at_once(start: Start) -> None:
    hub = start("--notice", "600")
    pids = workers(hub)
    hub.process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{hub.url}/readyz").status_code == 503)
    hub.process.send_signal(signal.SIGTERM)
    assert hub.process.wait(30) == -signal.SIGTERM
    assert all(gone(pid) for pid in pids)


def test_watching_process_when_killed_then_its_workers_finish_and_leave_the_address(start: Start) -> None:
    hub = start()
    upload, pids = Upload(hub), workers(hub)
    hub.process.kill()
    until(lambda: httpx.get(f"{hub.url}/readyz").status_code == 503)
    assert upload.finish().startswith(b"HTTP/1.1 200")
    until(lambda: all(gone(pid) for pid in pids))
    assert refuses(hub.url)


def test_worker_when_it_hangs_then_it_is_killed_and_replaced(tmp_path: Path) -> None:
    code = (
        "import sys; from hub_loader.cli import main; import registry.workers as w; w.PATIENCE = 3.0; main()"
    )
    command = [sys.executable, "-c", code, *khub_command("serve", "--data", tmp_path / "data")[3:]]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--json", "--workers", "2"],
            env=khub_environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    hub = Hub(json.loads(process.stdout.readline())["url"], tmp_path / "data", process)
    try:
        before = workers(hub)
        os.kill(before[0], signal.SIGSTOP)
        until(lambda: len({*workers(hub)} - {before[0]}) == 2)
        text = (tmp_path / "log").read_text()
        assert f"Worker {before[0]} says nothing for 3 s: killed" in text
        assert f"Worker {before[0]} was ended by SIGKILL: another is started" in text
    finally:
        end(hub)


def test_worker_when_none_can_be_started_for_it_then_the_others_serve_until_one_can(start: Start) -> None:
    hub = start()
    before, watching = workers(hub), hub.process.pid
    limits = resource.prlimit(watching, resource.RLIMIT_NOFILE)
    used = {int(fd.name) for fd in Path(f"/proc/{watching}/fd").iterdir()}
    resource.prlimit(watching, resource.RLIMIT_NOFILE, (max(used) + 1, limits[1]))
    os.kill(before[0], signal.SIGKILL)
    until(lambda: "A worker cannot be started" in hub.log.read_text())
    assert httpx.get(f"{hub.url}/readyz").status_code == 200
    resource.prlimit(watching, resource.RLIMIT_NOFILE, limits)
    until(lambda: len({*workers(hub)} - {before[0]}) == 2)
    until(lambda: len(list(Path(f"/proc/{watching}/fd").iterdir())) == len(used))
    assert hub.stop(signal.SIGTERM) == 0


def test_serve_when_no_worker_can_serve_then_one_line_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    done = khub("serve", "--data", tmp_path / "data", "--port", "0", "--workers", "2")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "OTEL_TRACES_EXPORTER=zipkin" in done.stderr


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_serve_when_the_number_of_workers_is_none_then_usage_error(tmp_path: Path, count: str) -> None:
    done = khub("serve", "--data", tmp_path / "data", "--port", "0", "--workers", count)
    assert done.returncode == 2 and "--workers" in done.stderr
