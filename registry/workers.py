"""Several processes that serve one address: one watches, the others are workers, each as `serve` is alone.

All accept from one listening socket, so what was sent to a worker that dies before it was accepted goes to
another. A worker that ends is replaced, as is one whose event loop says nothing for `PATIENCE` seconds. SIGINT or
SIGTERM to the watching process stops all of them in order; to a worker, which a terminal or systemd may send as
well, it says the same. If the watching process is killed its workers find nobody reading what they say, and stop.

uvicorn's own supervisor is not used: its workers end at a second signal wherever that comes from, outlive the
process that watches them, and cannot be given a server that drains.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from hub_loader.errors import KernelHubError, RegistryError

from .serving import DrainingServer, Plan, end_by, log_to_stderr, prepared
from .telemetry.drain import Drain
from .telemetry.metrics import SHARED

PATIENCE = 60.0  # seconds of silence after which a worker hangs; they speak once a second
_PAUSE = 5.0  # seconds until a worker is started for one that did not get as far as serving
_ENDINGS = (signal.SIGINT, signal.SIGTERM)
_READY, _ALIVE = "ready", "alive"
_log = logging.getLogger(__name__)


@dataclass
class _Worker:
    """A worker as the watching process sees it; `heard` is when it spoke last."""

    process: SpawnProcess
    says: Connection
    heard: float
    ready: bool = False
    failed: KernelHubError | None = None

    def listen(self) -> None:
        """Take in what it said."""
        with suppress(EOFError, OSError):
            while self.says.poll():
                word = self.says.recv()
                self.heard = time.monotonic()
                self.ready = self.ready or word == _READY
                self.failed = word if isinstance(word, KernelHubError) else None


class Supervisor:
    """Starts `count` workers, replaces those that end, and stops them all."""

    def __init__(self, plan: Plan, listener: socket.socket, count: int) -> None:
        self._plan = plan
        self._listener = listener
        self._workers: list[_Worker] = []
        self._due = [0.0] * count  # when workers that are still to be started are started
        self._served = self._announced = self._stopping = False
        self._looked = time.monotonic()

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until a signal; `ready` is called once all workers do.

        Raises what a worker raised, or RegistryError, if it ends before any has served.
        """
        with _signals() as signals, _shared_metrics() as self._metrics:
            try:
                while self._workers or (self._due and not self._stopping):
                    self._start_due()
                    wait([signals, *self._voices()], timeout=1)
                    for sig in _sent(signals):
                        self._stop(sig)
                    self._listen()
                    self._reap()
                    if self._all_serve() and not (self._announced or self._stopping):
                        self._announced = True
                        ready()
            finally:
                self._kill_all()

    def _all_serve(self) -> bool:
        return bool(self._workers) and all(worker.ready for worker in self._workers)

    def _voices(self) -> list[Connection | int]:
        return [*(worker.says for worker in self._workers), *(w.process.sentinel for w in self._workers)]

    def _start_due(self) -> None:
        now = time.monotonic()
        due = [at for at in self._due if at <= now]
        self._due = [at for at in self._due if at > now]
        for _ in due:
            try:
                self._start()
            except OSError as error:  # no process or no descriptor is to be had
                if not self._served:
                    raise RegistryError(
                        f"A worker cannot be started: {error}. Allow more, or fewer."
                    ) from None
                _log.error("A worker cannot be started: %s; tried again in %g s", error, _PAUSE)
                self._due.append(now + _PAUSE)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        says, its_end = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(self._plan, self._listener, its_end))
        try:
            resource_tracker.ensure_running()  # else `start` does, and unblocks signals
            # A worker begins with these signals blocked, and takes them when it can: none of them is lost.
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
            process.start()
            self._workers.append(_Worker(process, says, time.monotonic()))
        except OSError:
            says.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)
            its_end.close()

    def _stop(self, sig: int) -> None:
        """Tell the workers to stop; the second time end them and this process."""
        if self._stopping:
            self._kill_all()
            shutil.rmtree(self._metrics, ignore_errors=True)
            end_by(sig)
        self._stopping = True
        self._due = []
        for worker in self._workers:
            worker.process.terminate()

    def _listen(self) -> None:
        """Hear what workers say, and kill those that hang."""
        now = time.monotonic()
        paused, self._looked = now - self._looked > 5, now  # this process itself had no turn
        for worker in self._workers:
            worker.listen()
            self._served = self._served or worker.ready
            if paused:
                worker.heard = now
            if worker.ready and now - worker.heard > PATIENCE:
                _log.error("Worker %d says nothing for %d s: killed", worker.process.pid, PATIENCE)
                worker.process.kill()

    def _reap(self) -> None:
        """Have workers that ended replaced. Raises what keeps the first from serving."""
        ended = [worker for worker in self._workers if not worker.process.is_alive()]
        self._workers = [worker for worker in self._workers if worker not in ended]
        for worker in ended:
            pid, how = worker.process.pid, _ending(worker.process.exitcode)
            assert pid is not None
            mark_process_dead(pid, self._metrics)  # type: ignore[no-untyped-call]
            worker.listen()  # to its last word
            self._served = self._served or worker.ready
            worker.says.close()
            if self._stopping:
                if worker.process.exitcode:
                    _log.error("Worker %d %s while it stopped", pid, how)
                continue
            if not self._served:
                raise worker.failed or RegistryError(f"A worker {how} before it served: its log says why.")
            pause, reason = 0.0 if worker.ready else _PAUSE, worker.failed or ""
            _log.error("Worker %d %s: another is started in %g s. %s", pid, how, pause, reason)
            self._due.append(time.monotonic() + pause)

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with {code}"


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that can be read once one of `_ENDINGS` came, in the place of what these do otherwise."""
    readable, writable = os.pipe()
    for end in (readable, writable):
        os.set_blocking(end, False)
    before = {sig: signal.signal(sig, lambda *_: None) for sig in _ENDINGS}
    woken = signal.set_wakeup_fd(writable)
    try:
        yield readable
    finally:
        signal.set_wakeup_fd(woken)
        for sig, handler in before.items():
            signal.signal(sig, handler)
        os.close(readable)
        os.close(writable)


def _sent(signals: int) -> list[int]:
    """The signals that came since the last time."""
    with suppress(BlockingIOError):
        return [sig for sig in os.read(signals, 64) if sig in _ENDINGS]
    return []


@contextmanager
def _shared_metrics() -> Iterator[str]:
    """A folder in which the workers count, so that each of them can tell what all have."""
    with tempfile.TemporaryDirectory(prefix="khub-metrics-") as folder:
        before = os.environ.get(SHARED)
        os.environ[SHARED] = folder  # read by the client's library when a worker imports it
        try:
            yield folder
        finally:
            if before is None:
                del os.environ[SHARED]
            else:
                os.environ[SHARED] = before


# -- in a worker


def _work(plan: Plan, listener: socket.socket, says: Connection) -> None:
    """Serve until the watching process says, or is gone."""
    os.set_blocking(says.fileno(), False)  # a watching process that is suspended stops nobody
    for sig in _ENDINGS:
        signal.signal(sig, lambda *_: None)  # what holds before and after the server's own
    log_to_stderr(plan)
    try:
        with prepared(plan) as (config, drain):
            _WorkerServer(config, drain, says).run(sockets=[listener])
    except KernelHubError as error:
        said = RegistryError(str(error)) if isinstance(error, RegistryError) else error
        says.send(said)
        raise SystemExit(error.exit_code) from None


class _WorkerServer(DrainingServer):
    """A server that says once a second that its event loop turns, and stops when nobody hears it."""

    def __init__(self, config: uvicorn.Config, drain: Drain, says: Connection) -> None:
        super().__init__(config, drain, self._serves)
        self._says = says

    def _serves(self) -> None:
        self._say(_READY)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)  # uvicorn has its handlers in place

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._speaking = asyncio.create_task(
            self._speak()
        )  # to the end: also while the last answers are sent
        await super().startup(sockets)

    async def _speak(self) -> None:
        while True:
            self._say(_ALIVE)
            await asyncio.sleep(1)

    def _say(self, word: str) -> None:
        try:
            with suppress(BlockingIOError):
                self._says.send(word)
        except OSError:
            self._drain.begin()
