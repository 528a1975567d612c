"""The engine: requests in, tokens out, one mixed batch per step.

llm = LLM("engine/models/stdlib-llama", kernels="hub")
for completion in llm.generate(["def main():"], SamplingParams(max_tokens=32)):
    print(completion.text)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hub_loader.errors import UsageError

from . import scheduler
from .batch import build_batch
from .block_pool import BlockPool, blocks_for
from .config import load_config
from .kernels import Kernels, bind, format_bindings, slot_sources
from .model import Llama
from .sampler import SamplingParams, sample
from .tokenizer import Tokenizer
from .weights import Weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMATS = ("int8", "int4")
DEFAULT_CACHE_BYTES = 512 * 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Completion:
    """A finished request; `tokens` are the generated ids, the stop token included."""

    request_id: int
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finish_reason: str


@dataclass(frozen=True)
class _Request:
    params: SamplingParams
    generator: torch.Generator | None


class LLM:
    """A model with its paged cache and its queue of requests. One thread at a time."""

    def __init__(
        self,
        model: str | Path,
        *,
        kernels: str | Mapping[str, str] | Kernels = "torch",
        quantize: str | None = None,
        dtype: str = "float32",
        block_size: int = 16,
        num_blocks: int | None = None,
        token_budget: int = 512,
        max_sequences: int = 64,
    ) -> None:
        """Load a model folder in Hugging Face format and bind its kernels.

        kernels: "torch", "hub", a mapping from slot to source (see kernels.py), or kernels bound before.
        quantize: None, "int8" or "int4", applied to the linear layers while loading. num_blocks: blocks of
        the KV cache; by default what `max_sequences` whole contexts need, and at most 512 MiB. token_budget:
        the most tokens computed in a step, prompt chunks and decodes together.

        Raises:
            ModelError: the folder is incomplete or describes another architecture.
            UsageError: an argument is out of range.
            KernelHubError: a kernel cannot be loaded.
        """
        if dtype not in DTYPES:
            raise UsageError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        if quantize is not None and quantize not in FORMATS:
            raise UsageError(f"quantize {quantize!r}: expected one of {', '.join(FORMATS)}, or nothing")
        for name, value in (
            ("block_size", block_size),
            ("num_blocks", 1 if num_blocks is None else num_blocks),
            ("token_budget", token_budget),
            ("max_sequences", max_sequences),
        ):
            if value < 1:
                raise UsageError(f"{name} is {value}, expected at least 1")
        folder = Path(model)
        self.config = load_config(folder)
        self.tokenizer = Tokenizer(folder)
        weights = Weights(folder)
        self.kernels = kernels if isinstance(kernels, Kernels) else bind(slot_sources(kernels, quantize))
        log.info("kernels of %s:\n%s", folder, format_bindings(self.kernels.bindings))
        self._model = Llama(self.config, weights, self.kernels, DTYPES[dtype], quantize)
        if num_blocks is None:
            affordable = DEFAULT_CACHE_BYTES // (self._model.cache_bytes_per_token() * block_size)
            num_blocks = max(1, min(affordable, max_sequences * blocks_for(self.config.context, block_size)))
        self._cache = self._model.new_cache(num_blocks, block_size)
        pool = BlockPool(num_blocks)
        self.scheduler = scheduler.Scheduler(pool, block_size, token_budget, max_sequences)
        self._requests: dict[int, _Request] = {}
        self._next_id = 0

    @property
    def busy(self) -> bool:
        """Whether a request is unfinished."""
        return bool(self._requests)

    def add(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> int:
        """Queue a prompt, as text or as token ids; returns the request's id.

        Raises:
            UsageError: the prompt is empty, has an id outside the vocabulary, or does not fit with max_tokens
                into the model's context or into the cache.
        """
        params = params or SamplingParams()
        return self._queue(self._check(prompt, params), params)

    def step(self) -> list[Completion]:
        """Compute one batch; returns the requests that finished with it. Does nothing when none is queued."""
        step = self.scheduler.schedule()
        for preemption in step.preempted:
            log.info("%s", preemption.reason)
        if not step.chunks:
            return []
        batch = build_batch(step, self.scheduler.block_size, self.kernels.plan_step)
        logits = self._model.forward(batch, self._cache)
        sampling = [self._requests[chunk.sequence.id] for chunk in step.chunks if chunk.samples]
        tokens = sample(logits, [r.params for r in sampling], [r.generator for r in sampling])
        return [self._completion(sequence) for sequence in self.scheduler.complete(step, tokens)]

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | None = None
    ) -> list[Completion]:
        """Run all prompts in one continuous batch; completions in the order of the prompts.

        Raises:
            UsageError: as `add`, and then no prompt is queued; or requests of `add` are unfinished.
        """
        if self.busy:
            raise UsageError(
                "requests of add() are unfinished: call step() until none is left, then generate()"
            )
        params = params or SamplingParams()
        checked = [self._check(prompt, params) for prompt in prompts]
        ids = [self._queue(tokens, params) for tokens in checked]
        done: dict[int, Completion] = {}
        while len(done) < len(ids):
            done |= {completion.request_id: completion for completion in self.step()}
        return [done[request_id] for request_id in ids]

    def _check(self, prompt: str | Sequence[int], params: SamplingParams) -> list[int]:
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        total = len(tokens) + params.max_tokens
        wish = f"a prompt of {len(tokens)} tokens with max_tokens={params.max_tokens}"
        if not tokens:
            raise UsageError("the prompt is empty: give at least one token")
        if not all(0 <= token < self.config.vocab_size for token in tokens):
            raise UsageError(f"the prompt has token ids outside 0 … {self.config.vocab_size - 1}")
        if total > self.config.context:
            raise UsageError(f"{wish} exceeds the model's context of {self.config.context}: shorten either")
        if total - 1 > self.scheduler.capacity:
            raise UsageError(
                f"{wish} exceeds the cache of {self.scheduler.capacity} tokens: raise num_blocks"
            )
        return tokens

    def _queue(self, tokens: list[int], params: SamplingParams) -> int:
        stop = frozenset[int]() if params.ignore_stop else self.config.stop_tokens
        request_id, self._next_id = self._next_id, self._next_id + 1
        self.scheduler.add(scheduler.Sequence(request_id, tokens, params.max_tokens, stop))
        self._requests[request_id] = _Request(params, params.generator())
        return request_id

    def _completion(self, sequence: scheduler.Sequence) -> Completion:
        del self._requests[sequence.id]
        prompt, generated = sequence.tokens[: sequence.prompt_length], sequence.generated
        assert sequence.finish_reason is not None  # the scheduler hands over finished sequences only
        text = self.tokenizer.decode(generated)
        return Completion(sequence.id, tuple(prompt), tuple(generated), text, sequence.finish_reason)
