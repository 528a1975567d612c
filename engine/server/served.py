"""The model that is served, as the routes see it: prompts to token ids, limits, and jobs."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from starlette.types import Receive

from hub_loader.errors import KernelHubError

from ..chat import render_chat
from ..engine import LLM
from ..output import Completion
from ..params import SamplingParams
from .errors import RequestError, too_long
from .http import LARGE, watched
from .job import Event, Job
from .metrics import Metrics
from .options import Options
from .worker import Worker

RECENT = 64  # jobs whose ends say how fast the queue moves
LONGEST_RETRY = 60  # seconds


class Served:
    """One model behind every route."""

    def __init__(self, llm: LLM, options: Options) -> None:
        self.folder = llm.folder
        self.options = options
        self.created = int(time.time())
        self.tokenizer = llm.tokenizer
        self.bindings = llm.kernel_table
        self.stop_tokens = llm.config.stop_tokens
        self.vocabulary = llm.config.vocab_size
        self.hidden_size = llm.config.hidden_size
        # Keys and values of a text that becomes a vector are in a cache of their own, no larger than the other.
        self.longest_input = min(llm.config.context, llm.scheduler.capacity)
        # The last token is never an input, so it needs no place in the cache.
        self.limit = min(llm.config.context, llm.scheduler.capacity + 1)
        self.worker = worker = Worker(llm, self._observe)
        self.metrics = Metrics(options.name)
        self.metrics.watch(lambda: worker.stats, lambda: worker.waiting, llm.scheduler.block_size)
        self.chats = _has_template(llm.folder)
        # Grammars of strangers: they wait for each other, and neither the engine nor anybody else for them.
        self._guide = llm.guide
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="guide")
        self._ends: deque[float] = deque(maxlen=RECENT)

    def check_name(self, name: str) -> None:
        """Raises RequestError 404 if it is another model's."""
        if name != self.options.name:
            raise RequestError(
                404,
                f"The model {name!r} is not served here: ask for {self.options.name!r}.",
                param="model",
                code="model_not_found",
            )

    async def encode(self, text: str, *, rendered: bool = False) -> list[int]:
        """Token ids of a prompt; of a rendered chat, which has its special tokens, without adding any."""
        if len(text) < LARGE:
            return self.tokenizer.encode(text, add_special_tokens=not rendered)
        return await asyncio.to_thread(self.tokenizer.encode, text, not rendered)

    async def prompts(self, given: str | Sequence[Any], param: str) -> list[list[int]]:
        """One or many prompts, each as text or as token ids, as token ids.

        Raises:
            RequestError: there are too many, one is empty or has ids that the model does not know.
        """
        many: Sequence[Any] = (
            [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
        )
        if len(many) > self.options.queue:
            raise RequestError(
                400, f"{len(many)} at once are more than --queue {self.options.queue}.", param=param
            )
        if sum(map(len, many)) < LARGE:
            return self._tokens(many, param)
        return await asyncio.to_thread(self._tokens, many, param)

    def _tokens(self, prompts: Sequence[Any], param: str) -> list[list[int]]:
        found = [self.tokenizer.encode(each) if isinstance(each, str) else list(each) for each in prompts]
        if not found or not all(found):
            raise RequestError(400, "The prompt is empty: give at least one token.", param=param)
        if any(token >= self.vocabulary for tokens in found for token in tokens):
            raise RequestError(400, f"There are token ids above {self.vocabulary - 1}.", param=param)
        return found

    def embed(self, prompts: Sequence[Sequence[int]]) -> asyncio.Future[list[list[float]]]:
        """Vectors of prompts; cancel it to give them up.

        Raises:
            RequestError: one is too long, or (429) too many wait already.
        """
        longest = max(map(len, prompts))
        if longest > self.longest_input:
            raise too_long(f"The input has {longest} tokens; this server's limit is {self.longest_input}.")
        waiting = self.worker.embedding
        if waiting >= self.options.queue:
            raise self._overloaded(waiting)
        return self.worker.embed(prompts, self.options.pooling)

    def _overloaded(self, waiting: int) -> RequestError:
        seconds = self.retry_after(waiting)
        text = f"{waiting} requests wait already: send this one again in {seconds} s."
        return RequestError(429, text, headers={"Retry-After": str(seconds)})

    def room(self, prompts: Sequence[Sequence[int]], wanted: int | None, default: int | None = None) -> int:
        """How many tokens may follow each of the prompts: `wanted`, else `default`, else what fits.

        Raises:
            RequestError: a prompt is too long, alone or with what is wanted.
        """
        longest = max(map(len, prompts))
        fits = self.limit - longest
        if fits < 1:
            raise too_long(f"The prompt has {longest} tokens; this server's limit is {self.limit - 1}.")
        allowed = fits if self.options.max_tokens is None else min(fits, self.options.max_tokens)
        if wanted is None:
            return allowed if default is None else min(allowed, default)
        if wanted > fits:
            raise too_long(
                f"A prompt of {longest} tokens with {wanted} to generate is longer than this server's limit of "
                f"{self.limit} tokens: shorten either."
            )
        if wanted > allowed:
            raise RequestError(
                400, f"max_tokens is {wanted}; this server generates at most {allowed}.", param="max_tokens"
            )
        return wanted

    async def submit(self, receive: Receive, prompts: Sequence[Sequence[int]], params: SamplingParams) -> Job:
        """Queue prompts; they are given up if their sender goes away meanwhile.

        Raises:
            RequestError: 429, too many wait already.
            KernelHubError: the engine refuses one.
            GivenUp: the sender has gone.
        """
        new = len(prompts) * params.n
        self._check_queue(new)
        guide = None
        if params.guided:
            loop = asyncio.get_running_loop()
            guide = await loop.run_in_executor(self._compiler, self._guide, params)
            self._check_queue(new)  # others may have come
        job = self.worker.submit(prompts, params, guide)
        with watched(receive, job.abort):
            try:
                await job.accepted()
            except asyncio.CancelledError:
                job.abort()
                raise
        return job

    def _check_queue(self, new: int) -> None:
        """Raises RequestError if so many continuations more are too many."""
        waiting, most = self.worker.waiting, self.options.queue
        if new > most:
            raise RequestError(400, f"{new} continuations at once are more than --queue {most}.")
        if waiting + new > most:
            raise self._overloaded(waiting)

    def _observe(self, job: Job, events: Sequence[Event], now: float) -> None:
        """What a step gave a job; if it is over, one more that says how fast the queue moves."""
        self.metrics.observe(job, events, now)
        if job.over:
            self._ends.append(now)

    def retry_after(self, waiting: int) -> int:
        """Whole seconds after which a tenth of those who wait should have had their turn."""
        if len(self._ends) < 2:
            return 1
        each = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return max(1, min(LONGEST_RETRY, math.ceil(each * waiting / 10)))

    def stop_text(
        self, completion: Completion, stops: Sequence[str], show_special: bool = False
    ) -> str | None:
        """Which of the stop texts ended a completion, if one did."""
        if completion.finish_reason != "stop" or not stops:
            return None
        whole = self.tokenizer.decode(completion.tokens, show_special)
        rest = whole[len(completion.text) :] if whole.startswith(completion.text) else ""
        return next((stop for stop in stops if rest.startswith(stop)), None)


def new_id(prefix: str) -> str:
    """An id that no other answer has."""
    return prefix + secrets.token_hex(12)


def _has_template(folder: Path) -> bool:
    try:
        render_chat(folder, [{"role": "user", "content": "x"}])
    except KernelHubError:
        return False
    return True
