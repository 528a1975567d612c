"""This engine."""

from __future__ import annotations

import time
from typing import Any

import torch

import engine
from engine import LLM, SamplingParams


def run(plan: dict[str, Any]) -> dict[str, Any]:
    """`options` are those of LLM."""
    torch.set_num_threads(plan["threads"])
    begun = time.perf_counter()
    llm = LLM(plan["model"], dtype=plan["dtype"], **plan["options"])
    load_seconds = time.perf_counter() - begun
    for request in plan["before"]:  # one after the other: the last may be what fills the cache
        generate(llm, [request])
    cpu = time.process_time()
    requests, waste = generate(llm, plan["requests"])
    return {
        "version": getattr(engine, "__version__", ""),
        "load_seconds": load_seconds,
        "cpu_seconds": time.process_time() - cpu,
        "kv_waste": waste,
        "requests": requests,
    }


def generate(llm: LLM, requests: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
    """The tokens of each request with their times, and the mean waste of the cache while it ran.

    Raises:
        ComputeError: what was computed for one is not finite.
    """
    begun = time.perf_counter()
    traces: dict[int, dict[str, Any]] = {}
    for request in requests:
        params = SamplingParams(max_tokens=request["max_tokens"], ignore_stop=True)
        traces[llm.add(request["tokens"], params)] = {"tokens": [], "times": []}
    wastes = []
    while llm.busy:
        deltas = llm.step()
        wastes.append(llm.scheduler.waste)
        now = time.perf_counter() - begun
        for delta in deltas:
            trace = traces[delta.request_id]
            trace["tokens"] += [choice.token for choice in delta.choices]
            trace["times"] += [now] * len(delta.choices)
            if delta.completion is not None and delta.completion.error is not None:
                raise delta.completion.error
    held = wastes[:-1] or [0.0]  # nobody holds a block after the last step
    return list(traces.values()), sum(held) / len(held)
