"""transformers' continuous batching, what `generate_batch` runs: requests of different lengths without padding."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

_NO_TOKEN = -1


def run(plan: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(plan["threads"])
    begun = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        plan["model"], dtype=getattr(torch, plan["dtype"]), attn_implementation="sdpa"
    )
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


def _cache_for(requests: list[dict[str, Any]]) -> Any:
    """Room for all requests and as much again; left alone, it takes most of the machine's memory."""
    config = ContinuousBatchingConfig()
    pages = (-(-(len(r["tokens"]) + r["max_tokens"]) // config.page_size) for r in requests)
    config.num_blocks = 2 * sum(pages)
    return config


def _generate(model: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The loop of `generate_batch`, with a number of tokens for each request."""
    config = GenerationConfig(
        max_new_tokens=max(request["max_tokens"] for request in requests),
        do_sample=False,
        eos_token_id=_NO_TOKEN,
        pad_token_id=0,
    )
    done: dict[str, Any] = {}
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=_cache_for(requests), block=True, warmup=False
    ) as manager:
        begun = time.perf_counter()  # making the cache is not generating
        for number, request in enumerate(requests):
            manager.add_request(
                request["tokens"], str(number), max_new_tokens=request["max_tokens"], record_timestamps=True
            )
        while len(done) < len(requests):
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise RuntimeError("transformers' continuous batching stopped before all requests were done")
            if result is not None and result.is_finished():
                if result.error:
                    raise RuntimeError(result.error)
                done[result.request_id] = result
    return [
        {"tokens": result.generated_tokens, "times": [moment - begun for moment in result.timestamps]}
        for result in (done[str(number)] for number in range(len(requests)))
    ]
