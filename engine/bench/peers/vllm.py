"""vLLM, in this process: its engine's steps are seen one by one, and its memory is the process's own."""

from __future__ import annotations

import os
import time
from typing import Any


def run(plan: dict[str, Any]) -> dict[str, Any]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm

    begun = time.perf_counter()
    llm = vllm.LLM(
        plan["model"],
        dtype=plan["dtype"],
        skip_tokenizer_init=True,
        max_model_len=max(plan["context"] + 16, 64),
        max_num_seqs=max(len(plan["requests"]), 8),
        **plan["options"],
    )
    load_seconds = time.perf_counter() - begun
    for request in plan["before"]:
        _generate(vllm, llm, [request])
    cpu = time.process_time()
    requests = _generate(vllm, llm, plan["requests"])
    return {
        "version": vllm.__version__,
        "load_seconds": load_seconds,
        "cpu_seconds": time.process_time() - cpu,
        "requests": requests,
    }


def _generate(vllm: Any, llm: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    core = llm.llm_engine
    traces: list[dict[str, Any]] = [{"tokens": [], "times": []} for _ in requests]
    begun = time.perf_counter()
    for number, request in enumerate(requests):
        params = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=request["max_tokens"],
            ignore_eos=True,
            detokenize=False,
            output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
        )
        core.add_request(str(number), {"prompt_token_ids": request["tokens"]}, params)
    while core.has_unfinished_requests():
        outputs = core.step()
        now = time.perf_counter() - begun
        for output in outputs:
            trace = traces[int(output.request_id.partition("-")[0])]
            tokens = list(output.outputs[0].token_ids)
            trace["tokens"] += tokens
            trace["times"] += [now] * len(tokens)
    return traces
