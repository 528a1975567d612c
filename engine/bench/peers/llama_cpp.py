"""llama.cpp by the wheels of xllamacpp: its own server's batching in this process, each request a stream of its own."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import xllamacpp


def run(plan: dict[str, Any]) -> dict[str, Any]:
    """`options` has `file`, the model as GGUF."""
    begun = time.perf_counter()
    server = xllamacpp.Server(_settings(plan))
    _generate(server, [{"tokens": [2, 3], "max_tokens": 2}])  # the first decode allocates
    load_seconds = time.perf_counter() - begun
    for request in plan["before"]:
        _generate(server, [request])
    cpu = time.process_time()
    requests = _generate(server, plan["requests"])
    return {
        "version": xllamacpp.__version__,
        "load_seconds": load_seconds,
        "cpu_seconds": time.process_time() - cpu,
        "requests": requests,
    }


def _settings(plan: dict[str, Any]) -> Any:
    settings = xllamacpp.CommonParams()
    settings.model.path = plan["options"]["file"]
    settings.n_parallel = len(plan["requests"])
    settings.n_ctx = settings.n_parallel * (plan["context"] + 32)
    settings.n_batch = settings.n_ubatch = 512
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = plan["threads"]
    settings.warmup = True
    settings.ctx_shift = False
    return settings


def _generate(server: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = [{"tokens": [], "times": []} for _ in requests]
    errors: list[str] = []
    begun = time.perf_counter()

    def ask(request: dict[str, Any], trace: dict[str, Any]) -> None:
        def take(answer: dict[str, Any]) -> None:
            now = time.perf_counter() - begun
            if "choices" not in answer:
                errors.append(str(answer))
                return
            # The model's words are its ids: w0, w1 and so on.
            tokens = [int(word) for word in re.findall(r"w(\d+)", answer["choices"][0]["text"])]
            trace["tokens"] += tokens
            trace["times"] += [now] * len(tokens)

        question = {
            "prompt": request["tokens"],
            "n_predict": request["max_tokens"],
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "cache_prompt": False,
        }
        server.handle_completions(question, take)

    askers = [threading.Thread(target=ask, args=pair) for pair in zip(requests, traces, strict=True)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    if errors:
        raise RuntimeError(errors[0])
    return traces
