"""transformers' `generate`: all requests as one batch, padded on the left, until the longest is done."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer


class _Clock(BaseStreamer):  # type: ignore[misc]
    """When each step's tokens came; the first call brings the prompts."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def run(plan: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(plan["threads"])
    begun = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=getattr(torch, plan["dtype"]))
    model = model.eval().to(plan["device"])
    load_seconds = time.perf_counter() - begun
    _generate(model, plan["before"])
    cpu = time.process_time()
    requests = _generate(model, plan["requests"])
    return {
        "version": transformers.__version__,
        "load_seconds": load_seconds,
        "cpu_seconds": time.process_time() - cpu,
        "requests": requests,
    }


def _generate(model: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    clock = _Clock()
    begun = time.perf_counter()
    longest = max(len(request["tokens"]) for request in requests)
    padding = [longest - len(request["tokens"]) for request in requests]
    rows = [[0] * pad + request["tokens"] for pad, request in zip(padding, requests, strict=True)]
    seen = [[0] * pad + [1] * (longest - pad) for pad in padding]
    output = model.generate(
        torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(seen, device=model.device),
        max_new_tokens=max(request["max_tokens"] for request in requests),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        streamer=clock,
    )
    times = [moment - begun for moment in clock.times[1:]]
    generated = output[:, longest:].tolist()
    counts = [request["max_tokens"] for request in requests]
    return [
        {"tokens": tokens[:count], "times": times[:count]}
        for tokens, count in zip(generated, counts, strict=True)
    ]
