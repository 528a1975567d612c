"""The one thread that the engine runs in, and how the event loop talks to it.

Orders (a new job, an abort) go in through a queue; what a step produced goes out with one wake-up of the event
loop, however many requests it touches. Orders are taken between steps, for a few milliseconds at most, so that
thousands of new requests delay those that run by little.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from hub_loader.errors import KernelHubError

from ..embed import Pooling, embed
from ..engine import LLM
from ..guide import TokenGuide
from ..output import Delta
from ..params import SamplingParams
from .job import Event, Job

log = logging.getLogger(__name__)
ORDER_SECONDS = 0.01  # spent on orders between two steps
BROKEN = "the engine has failed: see the server's log"
MOST_FAILURES = 3  # steps in a row that may fail before the engine counts as broken


class GivenUp(Exception):  # noqa: N818 - as EngineFailure
    """A job was aborted before the engine had queued all of it."""


class EngineFailure(Exception):  # noqa: N818 - an answer of this server, not of the family: nobody exits with it
    """The engine could not compute a request that it had accepted."""


@dataclass(frozen=True)
class Stats:
    """The engine between two steps. Blocks are those of the KV cache; tokens and preemptions since the start."""

    running: int = 0
    held_blocks: int = 0
    blocks: int = 0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0


@dataclass
class _Held:
    """A job in the engine: its requests that are not over, and how many of its prompts are still to be added."""

    ids: set[int]
    to_add: int


Embedding = Generator[None, None, torch.Tensor]
Vectors = asyncio.Future[list[list[float]]]
Observer = Callable[[Job, Sequence[Event], float], None]
"""Told of what a step gave a job, and when, in the event loop's thread."""


class Worker:
    """Runs `llm` in a thread of its own; every other thread keeps away from it."""

    def __init__(self, llm: LLM, observe: Observer = lambda job, events, now: None) -> None:
        self._llm = llm
        self._observe = observe
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        # The event loop's:
        self.jobs: set[Job] = set()
        self._unfinished = 0  # continuations of the jobs
        self._vectors: set[Vectors] = set()  # asked for and not there yet
        # The engine thread's: which job and which of its prompts a request of the engine is, and back.
        self._requests: dict[int, tuple[Job, int]] = {}
        self._held: dict[Job, _Held] = {}
        self._left: dict[int, int] = {}  # continuations of a request that have not ended
        self._embeds: deque[tuple[Embedding, Vectors]] = deque()
        self._failures = 0
        # Written by the engine thread, read by all:
        self.stats = Stats()
        self.broken = False
        self.beat = time.monotonic()  # when it last took an order or ended a step

    def start(self) -> None:
        """Begin; within the event loop that will be told."""
        self._loop = asyncio.get_running_loop()
        self.stats = self._measure()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after the step that it computes; jobs that are not over fail."""
        self._orders.put(None)
        while self._thread.is_alive():
            await asyncio.sleep(0.01)
        self._fail_all("the server has stopped")

    @property
    def embedding(self) -> int:
        """How many requests for vectors are not over."""
        return len(self._vectors)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many continuations wait for their first step, about."""
        return max(0, self._unfinished - self.stats.running)

    def submit(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, guide: TokenGuide | None = None
    ) -> Job:
        """Hand prompts over as token ids; `Job.accepted` says whether the engine takes them.

        guide: what `LLM.guide` makes of the parameters; without it a grammar is compiled in the engine's thread.
        """
        job = Job(prompts, params, time.monotonic(), lambda job: self._orders.put(lambda: self._abort(job)))
        self.jobs.add(job)
        self._unfinished += job.choices
        if self.broken:
            self._told(job, EngineFailure(BROKEN))
        else:
            for number in range(len(prompts)):  # an order each: a thousand prompts are not added in one go
                self._orders.put(partial(self._add, job, number, guide))
        return job

    def embed(self, prompts: Sequence[Sequence[int]], pooling: Pooling) -> Vectors:
        """Vectors of prompts, computed between the steps; whoever does not want them any more cancels."""
        vectors: Vectors = self._loop.create_future()
        if self.broken:
            vectors.set_exception(EngineFailure(BROKEN))
            return vectors
        self._vectors.add(vectors)
        vectors.add_done_callback(self._vectors.discard)
        self._orders.put(lambda: self._embeds.append((embed(self._llm, prompts, pooling), vectors)))
        return vectors

    # -- the engine's thread

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:  # a thread that died in silence would let everybody wait for ever
            log.critical(
                "The engine's thread failed: the engine is broken, restart the server", exc_info=True
            )
            self.broken = True
            self._loop.call_soon_threadsafe(self._fail_all, BROKEN)

    def _work(self) -> None:
        while self._take_orders():
            if self._llm.busy:
                self._step()
            if self._embeds:
                self._embed_step(*self._embeds[0])
            self.stats = self._measure()
            self.beat = time.monotonic()

    def _take_orders(self) -> bool:
        """Carry out what was ordered, and wait for orders if there is nothing else to do; False: stop."""
        idle = not self._llm.busy and not self._embeds
        until = time.monotonic() + ORDER_SECONDS
        while idle or time.monotonic() < until:
            try:
                order = self._orders.get(block=idle)
            except queue.Empty:
                break
            if order is None:
                return False
            self.beat = time.monotonic()
            order()
            idle = False  # what it changed is to be measured before the next is waited for
        return True

    def _add(self, job: Job, number: int, guide: TokenGuide | None) -> None:
        if number == 0:
            self._held[job] = _Held(set(), len(job.prompts))
        held = self._held.get(job)
        if held is None or job.given_up:  # one of its prompts was refused, or `_abort` is about to come
            return
        try:
            request_id = self._llm.add(job.prompts[number], job.params, guide)
        except Exception as error:  # whatever one request does to the engine, it answers for it alone
            self._forget(job)
            self._tell(job, _blamed(error))
            return
        held.ids.add(request_id)
        held.to_add -= 1
        self._requests[request_id] = job, number
        self._left[request_id] = job.params.n
        if not held.to_add:
            self._tell(job)

    def _abort(self, job: Job) -> None:
        """Comes after the orders that add its prompts, all of them."""
        held = self._held.get(job)
        if held is None:
            return
        if held.to_add:
            self._forget(job)
            self._tell(job, GivenUp("this request was given up before it was queued"))
            return
        ended = [each for request_id in held.ids for each in self._llm.abort(request_id)]
        self._hand_out([Delta(each.request_id, each.index, (), "", each) for each in ended])

    def _step(self) -> None:
        began = time.monotonic()
        try:
            deltas = self._llm.step()
        except Exception:  # any: who waits for this step gets an answer, the others are computed
            log.exception("A step failed")
            self._failures += 1
            self._fail_running()
        else:
            self._failures = 0
            self._started(began, deltas)
            self._hand_out(deltas)

    def _embed_step(self, embedding: Embedding, vectors: Vectors) -> None:
        failure: Exception | None = None
        found: list[list[float]] | None = None
        try:
            if not vectors.cancelled():
                next(embedding)
                return
        except StopIteration as done:
            found = done.value.tolist()
        except Exception as error:  # its sender gets an answer, and everybody else is served
            failure = _blamed(error)
        self._embeds.popleft()
        self._loop.call_soon_threadsafe(_settle, vectors, found, failure)

    def _started(self, began: float, deltas: Sequence[Delta]) -> None:
        ids = {sequence.id for sequence in self._llm.scheduler.running}
        for request_id in ids | {delta.request_id for delta in deltas}:
            times = self._requests[request_id][0].times
            times.started = times.started or began

    def _hand_out(self, deltas: Sequence[Delta]) -> None:
        now = time.monotonic()
        found: dict[Job, list[Event]] = defaultdict(list)
        for delta in deltas:
            if delta.request_id not in self._requests:  # another of its request's continuations has failed
                continue
            job, number = self._requests[delta.request_id]
            if delta.completion is not None and delta.completion.error is not None:
                found.pop(job, None)
                self._forget(job)
                self._tell(job, delta.completion.error)
                continue
            found[job].append((number * job.params.n + delta.index, delta))
            if delta.completion is not None:
                self._ended(job, delta.request_id)
        if found:
            self._loop.call_soon_threadsafe(self._push, list(found.items()), now)

    def _ended(self, job: Job, request_id: int) -> None:
        """A continuation has ended; with the last one its request is forgotten, with the last request the job."""
        self._left[request_id] -= 1
        if not self._left[request_id]:
            del self._left[request_id], self._requests[request_id]
            held = self._held[job]
            held.ids.remove(request_id)
            if not held.ids and not held.to_add:
                del self._held[job]

    def _forget(self, job: Job) -> None:
        held = self._held.pop(job, None)
        for request_id in held.ids if held else ():
            self._requests.pop(request_id, None)
            self._left.pop(request_id, None)
            self._llm.abort(request_id)

    def _fail_running(self) -> None:
        """End those that the failed step may have been about; those that still wait are computed."""
        running = {sequence.id for sequence in self._llm.scheduler.running}
        waiting = {sequence.id for sequence in self._llm.scheduler.waiting} - running
        hit = {job for request_id, (job, _) in self._requests.items() if request_id not in waiting}
        if self._failures >= MOST_FAILURES:
            log.critical("%d steps in a row failed: the engine is broken, restart the server", self._failures)
            self.broken = True
            hit = set(self._held)
        for job in hit:
            self._forget(job)
            self._tell(job, EngineFailure("the engine failed on this request: see the server's log"))

    def _measure(self) -> Stats:
        scheduler = self._llm.scheduler
        return Stats(
            len(scheduler.running),
            scheduler.pool.held,
            scheduler.pool.num_blocks,
            scheduler.counters.prompt_tokens,
            scheduler.counters.prefix_hit_tokens,
            scheduler.counters.preemptions,
        )

    # -- the event loop's thread

    def _tell(self, job: Job, failure: Exception | None = None) -> None:
        """From the engine's thread: the job is accepted, or has failed."""
        self._loop.call_soon_threadsafe(self._told, job, failure)

    def _told(self, job: Job, failure: Exception | None) -> None:
        if failure is None:
            job.accept()
        elif job in self.jobs:
            self._unfinished -= job.choices - len(job.completions)
            job.fail(failure)
            self._end(job)

    def _fail_all(self, why: str) -> None:
        for job in list(self.jobs):
            self._told(job, EngineFailure(why))
        for vectors in list(self._vectors):
            _settle(vectors, None, EngineFailure(why))

    def _push(self, found: Sequence[tuple[Job, list[Event]]], now: float) -> None:
        for job, events in found:
            before = len(job.completions)
            job.push(events)
            self._unfinished -= len(job.completions) - before
            self._observe(job, events, now)
            if job.over:
                self._end(job)

    def _end(self, job: Job) -> None:
        job.times.ended = time.monotonic()
        self.jobs.discard(job)


def _settle(vectors: Vectors, found: list[list[float]] | None, failure: Exception | None) -> None:
    if vectors.done():  # cancelled meanwhile
        return
    if failure is not None:
        vectors.set_exception(failure)
    else:
        vectors.set_result(found or [])


def _blamed(error: Exception) -> Exception:
    """The error for whoever sent the request: ours as it is, any other in the log."""
    if isinstance(error, KernelHubError):
        return error
    log.error("A request could not be queued", exc_info=error)
    return EngineFailure("the engine failed on this request: see the server's log")
