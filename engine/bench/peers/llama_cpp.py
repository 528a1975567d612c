"""llama.cpp through its C interface: all sequences in one context, prompts first, then one token of each a step."""

from __future__ import annotations

import time
from typing import Any

import llama_cpp
import numpy as np


def run(plan: dict[str, Any]) -> dict[str, Any]:
    """`options` has `file`, the model as GGUF."""
    begun = time.perf_counter()
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        plan["options"]["file"].encode(), llama_cpp.llama_model_default_params()
    )
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {plan['options']['file']}")
    load_seconds = time.perf_counter() - begun
    for request in plan["before"]:
        _generate(model, [request], plan)
    cpu = time.process_time()
    requests = _generate(model, plan["requests"], plan)
    return {
        "version": llama_cpp.__version__,
        "load_seconds": load_seconds,
        "cpu_seconds": time.process_time() - cpu,
        "requests": requests,
    }


def _context(model: Any, sequences: int, plan: dict[str, Any]) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = sequences * (plan["context"] + 32)
    params.n_seq_max = sequences
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = plan["threads"]
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError("llama.cpp cannot make a context")
    return context


class _Batch:
    """Tokens on their way to the model; `rows` says whose logits come back, and from which row."""

    def __init__(self, context: Any, vocabulary: int) -> None:
        self._context, self._vocabulary = context, vocabulary
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.rows: list[tuple[int, int]] = []

    def add(self, token: int, position: int, sequence: int, sample: bool) -> bool:
        """Whether the batch is full now."""
        batch, row = self._batch, self._batch.n_tokens
        batch.token[row], batch.pos[row] = token, position
        batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, sequence, sample
        if sample:
            self.rows.append((sequence, row))
        batch.n_tokens = row + 1
        return bool(batch.n_tokens == 512)

    def compute(self) -> list[tuple[int, int]]:
        """The next token of each sequence that is sampled."""
        if not self._batch.n_tokens:
            return []
        if llama_cpp.llama_decode(self._context, self._batch):
            raise RuntimeError("llama_decode failed")
        chosen = []
        for sequence, row in self.rows:
            logits = llama_cpp.llama_get_logits_ith(self._context, row)
            chosen.append((sequence, int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())))
        self.rows, self._batch.n_tokens = [], 0
        return chosen

    def free(self) -> None:
        llama_cpp.llama_batch_free(self._batch)


def _generate(model: Any, requests: list[dict[str, Any]], plan: dict[str, Any]) -> list[dict[str, Any]]:
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    context = _context(model, len(requests), plan)
    batch = _Batch(context, vocabulary)
    traces: list[dict[str, Any]] = [{"tokens": [], "times": []} for _ in requests]
    begun = time.perf_counter()

    def take(chosen: list[tuple[int, int]]) -> None:
        now = time.perf_counter() - begun
        for sequence, token in chosen:
            traces[sequence]["tokens"].append(token)
            traces[sequence]["times"].append(now)

    for number, request in enumerate(requests):
        last = len(request["tokens"]) - 1
        for position, token in enumerate(request["tokens"]):
            if batch.add(token, position, number, position == last):
                take(batch.compute())
    take(batch.compute())
    while True:
        for number, request in enumerate(requests):
            generated = traces[number]["tokens"]
            if len(generated) < request["max_tokens"]:
                place = len(request["tokens"]) + len(generated) - 1
                batch.add(generated[-1], place, number, True)
        chosen = batch.compute()
        if not chosen:
            break
        take(chosen)
    batch.free()
    llama_cpp.llama_free(context)
    return traces
