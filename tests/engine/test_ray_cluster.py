"""Minutes on a local Ray: more and fewer replicas, an engine that dies within its replica, kernels from a hub."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import test_kernel_self_test as published
from engine_models import SHIPPED
from khub_process import Hub, khub_command, khub_environment
from serving import NAME, Server, start

from hub_loader.errors import ClusterError

pytest.importorskip("ray.serve", reason="pip install 'kernel-hub[ray]'")

# Delays shorter than anybody wants them, and a replica whose engine's thread can be killed.
PROGRAM = """
import sys
from engine.server.options import Options
from engine.server.process import run
from engine.server_ray.arguments import ClusterOptions
from engine.server_ray.cluster import application
from engine.server_ray.front import create_front
from engine.server_ray.replica import Replica, Spec

class Mortal(Replica):
    async def answer(self, asked):
        if asked.path == "/die":
            self._worker._orders.put(lambda: sys.exit("killed by a test"))
        async for item in super().answer(asked):
            yield item

out = sys.stdout
options = Options({name!r}, grace=20.0)
cluster = ClusterOptions({replicas!r}, 600, 0.5, 0.0, 2.0, 4.0)
spec = Spec({model!r}, options, {arguments!r})
with application(spec, cluster, Mortal) as running:
    print([(b.slot, b.source, b.signature) for b in running.kernels], file=sys.stderr)
    app, front = create_front(running.name, running.handle, options)
    ready = lambda url: print(url, file=out, flush=True)
    sys.exit(run(app, app.state.drain, front, "127.0.0.1", 0, ready=ready))
"""
StartFleet = Callable[..., Server]


@pytest.fixture
def start_fleet(tmp_path: Path) -> Iterator[StartFleet]:
    """start_fleet(fewest, most, **arguments of LLM) -> a server of replicas that compute one request at a time."""
    started: list[Server] = []

    def start(fewest: int, most: int, **arguments: Any) -> Server:
        given = {"max_sequences": 1, "fall_back": False} | arguments
        code = PROGRAM.format(name=NAME, replicas=(fewest, most), model=str(SHIPPED), arguments=given)
        errors = tmp_path / f"stderr-{len(started)}"
        with errors.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                env=khub_environment() | os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, errors.read_text()
        started.append(Server(url, process, errors))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.stop(signal.SIGTERM)


def ask(server: Server, tokens: int = 400) -> httpx.Response:
    body = {"model": NAME, "prompt": "import os", "max_tokens": tokens, "ignore_eos": True}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=180)


def running(server: Server) -> int:
    return int(httpx.get(f"{server.url}/health").json()["replicas"])


@pytest.mark.heavy
def test_replicas_become_more_while_tokens_are_queued_and_fewer_after_and_no_request_fails(
    start_fleet: StartFleet,
) -> None:
    server = start_fleet(1, 2)
    assert running(server) == 1
    codes: list[int] = []
    enough = threading.Event()

    def keep_asking() -> None:
        while not enough.is_set():
            codes.append(ask(server, 100).status_code)

    with ThreadPoolExecutor(12) as pool:
        clients = [pool.submit(keep_asking) for _ in range(12)]
        try:
            server.wait_until(lambda: running(server) == 2, "more")
        finally:
            enough.set()
    for client in clients:
        client.result()

    def one_has_ended() -> bool:
        codes.append(ask(server, 4).status_code)
        return running(server) == 1

    server.wait_until(one_has_ended, "fewer")
    assert set(codes) == {200}
    assert server.stop() == 0


@pytest.mark.heavy
def test_replica_whose_engine_died_is_replaced_and_who_asks_meanwhile_is_answered(
    start_fleet: StartFleet,
) -> None:
    server = start_fleet(1, 1)
    before = ask(server, 1).headers["x-khub-replica"]
    httpx.get(f"{server.url}/die")
    after = ask(server, 1)
    assert after.status_code == 200
    assert after.headers["x-khub-replica"] != before
    assert running(server) == 1


@pytest.mark.heavy
def test_each_replica_fetches_its_kernels_from_the_hub_and_proves_them(
    start_fleet: StartFleet, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path / "cache"))
    published.publish_norm(hub, tmp_path / "norm", "engine/replicas-norm", 1.0)
    server = start_fleet(2, 2, kernels={"norm": "engine/replicas-norm@1"})
    assert "('norm', 'engine/replicas-norm@1', 'key " in server.errors.read_text()
    kernels = [httpx.get(f"{server.url}/about").json()["kernels"] for _ in range(2)]
    for table in kernels:
        assert next(each for each in table if each["slot"] == "norm")["test"].startswith("passed")


@pytest.mark.heavy
def test_model_that_no_replica_can_load_ends_the_command_with_the_reason(tmp_path: Path) -> None:
    done = subprocess.run(
        khub_command("engine", "serve", tmp_path, "--ray", "--replica-cpus", "0.5", "--port", "0"),
        env=khub_environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == ClusterError.exit_code
    assert (done.stdout, done.stderr.count("Traceback")) == ("", 0)
    assert f"no replica of {tmp_path} starts: ModelError: " in done.stderr
    assert "config.json" in done.stderr


@pytest.mark.heavy
def test_cluster_that_is_not_there_is_named() -> None:
    done = subprocess.run(
        khub_command("engine", "serve", SHIPPED, "--ray", "--port", "0"),
        env=khub_environment() | {"RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == ClusterError.exit_code
    assert "127.0.0.1:1" in done.stderr


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """The address of a Ray cluster that was there before, and asks for a token."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}")
    options = ("--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats")
    log = tmp_path / "cluster"
    with tempfile.TemporaryDirectory(
        prefix="ray", ignore_cleanup_errors=True
    ) as folder:  # sockets' paths are short
        with log.open("w") as out:
            process = subprocess.Popen([*command, *options, f"--temp-dir={folder}"], stdout=out, stderr=out)
        until = time.monotonic() + 60
        while "--block" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
        process.terminate()
        process.wait(60)


@pytest.mark.heavy
def test_cluster_that_was_there_is_used_with_its_token_and_stays(cluster: str, tmp_path: Path) -> None:
    without = subprocess.run(
        khub_command("engine", "serve", SHIPPED, "--ray", "--port", "0"),
        env=khub_environment() | {"RAY_ADDRESS": cluster},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert without.returncode == ClusterError.exit_code
    assert "RAY_AUTH_MODE=token" in without.stderr
    environment = {"RAY_ADDRESS": cluster, "RAY_AUTH_MODE": "token"}
    for number in range(2):
        errors = tmp_path / f"stderr-{number}"
        server = start(SHIPPED, errors, "--ray", "--replica-cpus", "0.5", **environment)
        assert ask(server, 1).status_code == 200
        assert server.stop() == 0
