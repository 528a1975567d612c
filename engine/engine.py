"""The engine: requests in, tokens out, one mixed batch per step.

llm = LLM("engine/models/stdlib-llama", kernels="hub")
for completion in llm.generate(["def main():"], SamplingParams(max_tokens=32)):
    print(completion.text)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Sized
from pathlib import Path

import torch

from hub_loader.errors import ComputeError, UsageError

from .batch import build_batch
from .block_pool import BlockPool, blocks_for
from .config import load_config
from .device import CPU, find_device
from .failure import explained
from .graphs import make_graphs
from .guide import Guides, TokenGuide
from .kernel_table import Binding, format_bindings
from .kernels import Kernels, bind, slot_sources
from .line import Line
from .linear import W4A8, output_format, packed_format
from .model import Decoder
from .model_source import find_model
from .output import Completion, Delta, TextStream
from .params import SamplingParams
from .pipeline import Flight, copy_blocks
from .progress import Progress
from .sampler import Draws
from .scheduler import Chunk, Scheduler
from .self_test import proven, shapes_of
from .sequence import Sequence
from .speculation.layout import compact, with_drafts
from .speculation.proposer import Context, Proposer
from .speculation.spelling import Target, make_proposer
from .speculation.verify import Walk, verify
from .tokenizer import Tokenizer
from .weights import open_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMATS = ("int8", "int4", W4A8, "fp8")
DEFAULT_CACHE_BYTES = 512 * 2**20

log = logging.getLogger(__name__)


class LLM:
    """A model with its paged cache and its queue of requests. One thread at a time."""

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        kernels: str | Mapping[str, str] | Kernels = "torch",
        quantize: str | None = None,
        dtype: str = "float32",
        block_size: int = 16,
        num_blocks: int | None = None,
        token_budget: int = 512,
        max_sequences: int = 64,
        host_blocks: int = 0,
        share_prefixes: bool = True,
        fall_back: bool = False,
        speculate: str | Proposer | None = None,
        device: str = "cpu",
        asynchronous: bool | None = None,
        cuda_graphs: bool | None = None,
        compile: bool = False,
    ) -> None:
        """Load a model and bind its kernels.

        model: a folder in Hugging Face format, a GGUF file, or org/name (org/name/file.gguf) on the hub that
        HF_ENDPOINT names, of which `revision` is a branch, tag or commit.
        kernels: "torch", "hub", a mapping from slot to source (see kernels.py), or kernels bound before.
        quantize: None, "int8", "int4", "w4a8" (int4, and a kernel may round what it multiplies to 8 bits) or "fp8",
        applied to the linear layers while loading. num_blocks: blocks of the KV cache; by default what
        `max_sequences` whole contexts need, and at most 512 MiB. token_budget: the most tokens computed in a step,
        prompt chunks and decodes together. host_blocks: room beside the cache for blocks of preempted sequences,
        which are otherwise computed again. share_prefixes: keep the keys and values of what was computed, for
        prompts that begin alike. fall_back: a kernel that fails its self-test on this device is replaced by plain
        torch instead of refused. speculate: "ngram:4", "draft:MODEL:4", "tree:MODEL:16" or a proposer (see
        speculation/): what guesses tokens, to get several in one step; what is generated stays the same. device:
        "cpu", "cuda" or "cuda:1". asynchronous: plan each step and hand it to the device before the tokens of the
        one before are read (see pipeline.py); they stay the same and come a `step` later. None: on a GPU.
        cuda_graphs: replay steps of decodes alone (see graphs.py). None: on a GPU, where the kernels allow it.
        compile: have torch compile what stands between two layers' attention.

        Raises:
            ModelError: the model is incomplete or of another architecture.
            SelfTestError: a kernel does not compute on this device what it should.
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
        if host_blocks < 0:
            raise UsageError(f"host_blocks is {host_blocks}, expected 0 or more")
        place = find_device(device)
        self.folder = folder = find_model(model, revision)
        self.config = load_config(folder)
        self.tokenizer = Tokenizer(folder)
        weights = open_weights(folder, self.config.scheme)
        formats = weights.formats
        if quantize is not None:
            if formats:
                raise UsageError(
                    f"quantize={quantize!r}: {folder} is quantized already ({', '.join(formats)})"
                )
            packed = packed_format(quantize)
            formats = frozenset((packed, output_format(quantize) or packed))
        bound = kernels if isinstance(kernels, Kernels) else bind(slot_sources(kernels, formats))
        shapes = shapes_of(self.config, DTYPES[dtype], block_size, formats, weights, str(place))
        self.kernels = proven(bound, shapes, fall_back=fall_back)
        log.info("kernels of %s:\n%s", folder, format_bindings(self.kernels.bindings))
        self._model = Decoder(self.config, weights, self.kernels, DTYPES[dtype], quantize, place, compile)
        if num_blocks is None:
            affordable = DEFAULT_CACHE_BYTES // (self._model.cache_bytes_per_token() * block_size)
            num_blocks = max(1, min(affordable, max_sequences * blocks_for(self.config.context, block_size)))
        self._cache = self._model.new_cache(num_blocks, block_size)
        self._host_cache = self._model.new_cache(host_blocks, block_size, CPU)
        self._graphs = make_graphs(self._model, self._cache, self.kernels, max_sequences, cuda_graphs)
        self.scheduler = Scheduler(
            BlockPool(num_blocks),
            block_size,
            token_budget,
            max_sequences,
            host_blocks=host_blocks,
            share_prefixes=share_prefixes,
        )
        room = (self.scheduler.capacity, max_sequences)
        target = Target(self.config, self.tokenizer, self.kernels, DTYPES[dtype], *room, fall_back, place)
        self._proposer = make_proposer(speculate, target)
        self._guides = Guides(self.tokenizer.to_json, self.config.stop_tokens)
        self._lines: dict[tuple[int, int], Line] = {}
        self._next_id = 0
        wished = place.type == "cuda" if asynchronous is None else asynchronous
        self._asynchronous = wished and self._proposer is None  # who guesses has to know the last token
        self._flight: Flight[Line] | None = None  # a step that is computed, and not yet recorded
        self._late: list[Delta] = []  # of a step that was followed by one that failed

    @property
    def kernel_table(self) -> tuple[Binding, ...]:
        """What serves each slot, and why; `format_bindings` prints it."""
        return self.kernels.bindings

    @property
    def model(self) -> Decoder:
        """The model itself, for what is computed beside the queue."""
        return self._model

    @property
    def busy(self) -> bool:
        """Whether a request is unfinished."""
        return bool(self._lines)

    def guide(self, params: SamplingParams) -> TokenGuide | None:
        """What `add` would compile of the schema or expression in `params`; any thread may call it.

        Raises:
            UsageError: it cannot be followed.
            MissingExtraError: llguidance is not installed.
        """
        return self._guides.make(params)

    def add(
        self,
        prompt: str | Sized[int],
        params: SamplingParams | None = None,
        guide: TokenGuide | None = None,
    ) -> int:
        """Queue a prompt, as text or as token ids; returns the request's id.

        guide: what `guide` made of these parameters, for as many requests as have them.

        Raises:
            UsageError: the prompt is empty, has an id outside the vocabulary, or does not fit with max_tokens
                into the model's context or into the cache; or its guide cannot be followed.
        """
        params = params or SamplingParams()
        return self._queue(self._check(prompt, params), params, guide)

    def abort(self, request_id: int) -> list[Completion]:
        """Give up a request's unfinished continuations; what they had comes back, with the reason "abort"."""
        keys = ((request_id, index) for index in range(self.scheduler.max_sequences))
        lines = [self._lines[key] for key in keys if key in self._lines]
        for sequence in {line.sequence for line in lines}:
            if sequence.finish_reason is None:  # it has one if a step failed after the scheduler's part
                self.scheduler.end(sequence, "abort")
        self._late = [delta for delta in self._late if delta.request_id != request_id]
        return [self._finish(line, "abort") for line in lines]

    def step(self) -> list[Delta]:
        """Compute one batch; returns what it added to each line. Does nothing when none is queued.

        An asynchronous engine's answer may be empty, or that of the batch before.
        """
        before, self._flight = self._flight, None
        if before:  # as if each of its lines got a token that nothing ends
            self.scheduler.complete(before.step, before.stand_ins)
        try:
            flight = self._launch(before)
        finally:
            if before:
                self._late += self._settle(before)
        if flight and not flight.drawn:
            self._late += self._complete(flight)
        elif flight and self._lines:
            self._flight = flight
        elif flight:  # of lines that have all ended meanwhile
            self.scheduler.complete(flight.step, flight.stand_ins)
        deltas, self._late = self._late, []
        return deltas

    def generate(
        self,
        prompts: Sized[str | Sized[int]],
        params: SamplingParams | None = None,
        *,
        progress: bool | None = False,
    ) -> list[Completion]:
        """Run all prompts in one continuous batch; completions in the order of the prompts, `n` for each.

        progress: show a bar on standard error; None: where that is a terminal.

        A prompt whose tokens cannot be chosen ends with the reason "error" and its `error`, and the others go on.

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
        done: dict[tuple[int, int], Completion] = {}
        try:
            with Progress(len(ids) * params.n, progress) as bar:
                while len(done) < len(ids) * params.n:
                    deltas = self.step()
                    bar.take(deltas)
                    done |= {(d.request_id, d.index): d.completion for d in deltas if d.completion}
        except BaseException:  # an interrupt too: what nobody waits for any more is not to block the queue
            for request_id in ids:
                self.abort(request_id)
            raise
        return [done[request_id, index] for request_id in ids for index in range(params.n)]

    def _choose(self, logits: torch.Tensor, walks: Sized[Walk]) -> None:
        """Draw each line's next tokens from logits [rows, vocabulary]; the walks hold them afterwards."""
        verify(logits, walks)

    # -- one request

    def _check(self, prompt: str | Sized[int], params: SamplingParams) -> list[int]:
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        total = len(tokens) + params.max_tokens
        wish = f"a prompt of {len(tokens)} tokens with max_tokens={params.max_tokens}"
        if not tokens:
            raise UsageError("the prompt is empty: give at least one token")
        if not all(0 <= token < self.config.vocab_size for token in tokens):
            raise UsageError(f"the prompt has token ids outside 0 … {self.config.vocab_size - 1}")
        if not all(0 <= token < self.config.vocab_size for token in params.logit_bias):
            raise UsageError(f"logit_bias names token ids outside 0 … {self.config.vocab_size - 1}")
        if total > self.config.context:
            raise UsageError(f"{wish} exceeds the model's context of {self.config.context}: shorten either")
        if total - 1 > self.scheduler.capacity:
            raise UsageError(
                f"{wish} exceeds the cache of {self.scheduler.capacity} tokens: raise num_blocks"
            )
        if params.n > self.scheduler.max_sequences:
            raise UsageError(
                f"n={params.n} exceeds max_sequences={self.scheduler.max_sequences}: raise it or ask for fewer"
            )
        return tokens

    def _queue(self, tokens: list[int], params: SamplingParams, guide: TokenGuide | None = None) -> int:
        guide = guide or self._guides.make(params)
        stop = frozenset[int]() if params.ignore_stop else self.config.stop_tokens
        stop |= frozenset(token for token in params.stop_tokens if token >= 0)  # below are stand-ins
        request_id, self._next_id = self._next_id, self._next_id + 1
        sequence = Sequence(request_id, tokens, params.max_tokens, stop, params.priority, params.n)
        self.scheduler.add(sequence)
        for branch in range(params.n):
            draws = Draws.start(params, tuple(tokens), branch)
            draws.guide = guide.copy() if guide else None
            text = TextStream(self.tokenizer, params.stop, params.show_special)
            self._lines[request_id, branch] = Line(request_id, branch, sequence, draws, text)
        return request_id

    # -- one step

    def _launch(self, before: Flight[Line] | None) -> Flight[Line] | None:
        """Plan the next step and have it computed, with the tokens of the one before as the device has them."""
        self._propose()
        step = self.scheduler.schedule()
        for preemption in step.preempted:
            log.info("%s", preemption.reason)
        if not step.chunks:
            return None
        copy_blocks(self._cache, self._host_cache, step.swap_out)
        copy_blocks(self._host_cache, self._cache, step.swap_in)
        copy_blocks(self._cache, self._cache, step.copies)
        batch = build_batch(step, self.scheduler.block_size, self.kernels.plan_step)
        if self._proposer and any(chunk.draft for chunk in step.chunks):
            batch = with_drafts(batch, step)
        if before:
            batch = before.fill(batch)
        logits = self._graphs.run(batch) if self._graphs else None
        if logits is None:
            logits = self._model.forward(batch, self._cache)
        flight = Flight(step, self._walks(chunk for chunk in step.chunks if chunk.samples), logits)
        if self._asynchronous and flight.may_go_on:
            flight.draw()
        return flight

    def _complete(self, flight: Flight[Line]) -> list[Delta]:
        """Draw and record the tokens of a step before another is planned."""
        chunks = [chunk for chunk in flight.step.chunks if chunk.samples]
        self._choose(flight.logits, [walk for _, walk in flight.flat])
        if self._proposer:
            accepted = [(chunk, group[0][1].path) for chunk, group in zip(chunks, flight.walks, strict=True)]
            compact(self._cache, accepted, self.scheduler.block_size)
        finished = self.scheduler.complete(flight.step, [_following(group) for group in flight.walks])
        if len(flight.flat) > len(chunks):
            self._adopt([line for line, _ in flight.flat], finished)
        return [self._advance(line) for line, _ in flight.flat if self._holds(line)]

    def _settle(self, flight: Flight[Line]) -> list[Delta]:
        """Take the tokens of a step that another was planned behind; those of lines that have ended are no one's."""
        choices = flight.choices()
        self.scheduler.settle(flight.step, [choice.token for choice in choices])
        found = []
        for (line, walk), choice in zip(flight.flat, choices, strict=True):
            if _worthless(line):
                self.scheduler.pool.forget(line.sequence.digests)
            if self._holds(line):
                walk.follow(choice)
                found.append(self._advance(line))
        return found

    def _holds(self, line: Line) -> bool:
        """Whether the line has not ended."""
        return self._lines.get((line.request_id, line.index)) is line

    def _propose(self) -> None:
        """Have the lines guessed on that are about to get a token each, if a step has room for more."""
        if self._proposer is None:
            return
        left_to_compute = sum(len(each.tokens) - each.computed for each in self.scheduler.running)
        if left_to_compute >= self.scheduler.token_budget:
            return
        ready = [
            sequence
            for sequence in self.scheduler.running
            if sequence.branches == 1 and sequence.computed == len(sequence.tokens) - 1
        ]
        contexts = []
        for sequence in ready:
            draws = self._lines[sequence.id, sequence.branch].draws
            left = draws.params.max_tokens - len(draws.generated) - 1
            contexts.append(Context((sequence.id, sequence.branch), sequence.tokens, draws.params, left))
        for sequence, draft in zip(ready, self._proposer.propose(contexts), strict=True):
            sequence.draft = draft

    def _walks(self, chunks: Iterable[Chunk]) -> list[list[tuple[Line, Walk]]]:
        """For each chunk that samples the lines that it makes longer, and where their logits are."""
        walks, row = [], 0
        for chunk in chunks:
            lines = self._lines_of(chunk.sequence)
            walks.append([(line, Walk(line.draws, row, line.take, chunk.draft)) for line in lines])
            row += 1 + len(chunk.draft)
        return walks

    def _lines_of(self, sequence: Sequence) -> list[Line]:
        """The lines that a sampling chunk makes longer: all of a request's at its first token."""
        first = sequence.branch
        return [self._lines[sequence.id, branch] for branch in range(first, first + sequence.branches)]

    def _adopt(self, lines: Iterable[Line], finished: Iterable[Sequence]) -> None:
        """Find the sequences that the scheduler made for the branches of a request."""
        made = {(s.id, s.branch): s for s in (*self.scheduler.running, *finished)}
        for line in lines:
            line.sequence = made.get((line.request_id, line.index), line.sequence)  # none if all have failed

    def _advance(self, line: Line) -> Delta:
        """What a step added to a line; ends it if its sequence, its text, its guide or a failure says so."""
        reason, piece, choices = line.sequence.finish_reason, line.piece, tuple(line.fresh)
        line.piece, line.fresh = "", []
        if line.draws.failure or line.said_all:
            own = "error" if line.draws.failure else "stop"
            if reason is None:
                self.scheduler.end(line.sequence, own)
            reason = own
        if reason is None:
            return Delta(line.request_id, line.index, choices, piece)
        piece += line.text.finish()
        return Delta(line.request_id, line.index, choices, piece, self._finish(line, reason))

    def _finish(self, line: Line, reason: str) -> Completion:
        del self._lines[line.request_id, line.index]
        line.text.finish()
        tokens = tuple(line.draws.generated)
        return Completion(
            line.request_id,
            tuple(line.draws.prompt),
            tokens,
            line.text.text,
            reason,
            line.index,
            tuple(line.choices),
            line.sequence.cached or 0,
            explained(line.draws.failure, line.request_id, self.kernel_table),
        )


def _following(group: Sized[tuple[Line, Walk]]) -> list[int]:
    """The tokens that a chunk's line got, or the one that each of its lines got; none if logits were not finite."""
    if any(_worthless(line) for line, _ in group):
        return []
    return [choice.token for _, walk in group for choice in walk.choices]


def _worthless(line: Line) -> bool:
    """Whether what was computed for it is no numbers."""
    return isinstance(line.draws.failure, ComputeError)
