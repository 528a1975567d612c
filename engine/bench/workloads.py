"""What is asked of every engine: prompts of random tokens, and how many tokens to generate after each.

Pure and repeatable: the same arguments give the same requests. No data set is needed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from hub_loader.errors import UsageError

_FIRST_TOKEN = 2  # those before it begin and end texts


@dataclass(frozen=True)
class Request:
    """A prompt's token ids, and how many tokens to generate; stop tokens are ignored."""

    tokens: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Workload:
    """Requests that all come at once; `before` is run first and not measured: it warms up, or fills the cache."""

    name: str
    requests: tuple[Request, ...]
    before: tuple[Request, ...]


@dataclass(frozen=True)
class Sizes:
    """Counts of a workload: `requests`, prompt tokens `inputs`, generated tokens `outputs`, common `prefix`."""

    requests: int = 8
    inputs: int = 128
    outputs: int = 64
    prefix: int = 512


def fixed(sizes: Sizes, vocabulary: int, seed: int) -> Workload:
    """Every request has `inputs` tokens in and `outputs` out."""
    draw = random.Random(seed)
    requests = [
        Request(_tokens(draw, sizes.inputs, vocabulary), sizes.outputs) for _ in range(sizes.requests)
    ]
    return Workload("fixed", tuple(requests), _warm_up(draw, vocabulary))


def mix(sizes: Sizes, vocabulary: int, seed: int) -> Workload:
    """Lengths spread as those of ShareGPT's conversations are: log-normal, few long ones among many short.

    Their means are `inputs` and `outputs`; none is shorter than 4 tokens or longer than 8 times the mean.
    """
    draw = random.Random(seed)
    requests = []
    for _ in range(sizes.requests):
        length = _log_normal(draw, sizes.inputs, spread=1.1)
        requests.append(
            Request(_tokens(draw, length, vocabulary), _log_normal(draw, sizes.outputs, spread=0.9))
        )
    return Workload("mix", tuple(requests), _warm_up(draw, vocabulary))


def uniform(sizes: Sizes, vocabulary: int, seed: int) -> Workload:
    """Every length from a tenth of `inputs` or `outputs` up to it is as likely as any other."""
    draw = random.Random(seed)
    requests = []
    for _ in range(sizes.requests):
        length = draw.randint(-(-sizes.inputs // 10), sizes.inputs)
        count = draw.randint(-(-sizes.outputs // 10), sizes.outputs)
        requests.append(Request(_tokens(draw, length, vocabulary), count))
    return Workload("uniform", tuple(requests), _warm_up(draw, vocabulary))


def shared(sizes: Sizes, vocabulary: int, seed: int) -> Workload:
    """Prompts that begin with the same `prefix` tokens, which one request has been through before."""
    draw = random.Random(seed)
    prefix = _tokens(draw, sizes.prefix, vocabulary)
    own = max(1, sizes.inputs - sizes.prefix) if sizes.inputs > sizes.prefix else max(1, sizes.inputs // 8)
    requests = [
        Request(prefix + _tokens(draw, own, vocabulary), sizes.outputs) for _ in range(sizes.requests)
    ]
    before = (*_warm_up(draw, vocabulary), Request(prefix + _tokens(draw, own, vocabulary), 2))
    return Workload("shared", tuple(requests), before)


WORKLOADS: dict[str, Callable[[Sizes, int, int], Workload]] = {
    "fixed": fixed,
    "mix": mix,
    "uniform": uniform,
    "shared": shared,
}


def make_workload(name: str, sizes: Sizes, vocabulary: int, seed: int = 0) -> Workload:
    """The workload of that name.

    Raises:
        UsageError: a count below 1.
    """
    for field, value in vars(sizes).items():
        if value < 1:
            raise UsageError(f"{field} is {value}, expected at least 1")
    return WORKLOADS[name](sizes, vocabulary, seed)


def lengths(workload: Workload) -> list[int]:
    """Tokens of each request that is measured, prompt and answer together."""
    return [len(request.tokens) + request.max_tokens for request in workload.requests]


def longest(workload: Workload) -> int:
    """Tokens of the longest request, prompt and answer together."""
    return max(len(request.tokens) + request.max_tokens for request in (*workload.requests, *workload.before))


def _warm_up(draw: random.Random, vocabulary: int) -> tuple[Request, ...]:
    return (Request(_tokens(draw, 16, vocabulary), 4),)


def _tokens(draw: random.Random, count: int, vocabulary: int) -> tuple[int, ...]:
    return tuple(draw.randrange(_FIRST_TOKEN, vocabulary) for _ in range(count))


def _log_normal(draw: random.Random, mean: int, spread: float) -> int:
    length = round(draw.lognormvariate(math.log(mean) - spread**2 / 2, spread))
    return max(4, min(length, 8 * mean))
