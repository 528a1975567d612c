"""Steps of decodes alone, replayed as CUDA graphs: one launch in place of a thousand.

A graph repeats the very calls that were recorded, on the same memory. So steps are padded with rows that nobody
reads to one of a few sizes, for each of which the model is recorded once, when it is first met; and their batches are
copied into buffers that stay. A padding row has slot -1, so it writes nothing, and a sequence of length 1 in block
0, so what it reads exists.

What is decided and laid out is here and runs anywhere; what needs a GPU is `record_cuda`.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from hub_loader.errors import UsageError

from .batch import Batch
from .block_pool import blocks_for
from .config import ModelConfig
from .device import put
from .kernel_table import TORCH, Binding
from .kernels import Kernels
from .model import Decoder, KVCache

WARM_UPS = 2  # runs before a recording, in which libraries allocate what they keep

log = logging.getLogger(__name__)

Run = Callable[[], torch.Tensor]
Record = Callable[[Run], Run]
"""From what computes logits from buffers that stay to what repeats it; both give the logits [rows, vocabulary]."""


def sizes_up_to(most: int) -> tuple[int, ...]:
    """The numbers of rows that are recorded: 1, 2, 4, then every eighth up to 64, every 32nd up to 512, and `most`."""
    usual = (1, 2, 4, *range(8, 64, 8), *range(64, 513, 32))
    return (*(size for size in usual if size < most), most)


def why_not(bindings: Iterable[Binding], config: ModelConfig) -> str:
    """Why steps of this model with these kernels cannot be recorded; "" if nothing is known to be in the way."""
    torch_slots = [binding.slot for binding in bindings if binding.source == TORCH]
    asking = (
        ("attention", "kv_write") if "qkv" in torch_slots else ("attention",)
    )  # which writes the cache itself
    plain = [slot for slot in torch_slots if slot in asking]
    if plain:
        return f"plain torch in slot {' and '.join(plain)} asks the device for lengths: put a kernel there"
    if config.experts is not None:
        return "a mixture of experts asks the device which experts were chosen"
    return ""


def make_graphs(
    model: Decoder, cache: KVCache, kernels: Kernels, most: int, wanted: bool | None
) -> DecodeGraphs | None:
    """Graphs for steps of up to `most` sequences; None where they cannot be, or are not wanted (None: where they can).

    Raises:
        UsageError: they are wanted and cannot be.
    """
    reason = "there are none on a CPU"
    if model.device.type == "cuda":
        reason = why_not(kernels.bindings, model.config)
    if wanted and reason:
        raise UsageError(f"cuda_graphs: {reason}")
    if reason or wanted is False:
        return None
    blocks, block_size = cache[0][0].shape[:2]
    width = min(blocks, blocks_for(model.config.context, block_size))
    return DecodeGraphs(lambda batch: model.forward(batch, cache), sizes_up_to(most), width, model.device)


class DecodeGraphs:
    """Computes the logits of steps in which every sequence has one token."""

    def __init__(
        self,
        forward: Callable[[Batch], torch.Tensor],
        sizes: Sequence[int],
        table_width: int,
        device: torch.device,
        record: Record | None = None,
    ) -> None:
        """forward: from a batch to its logits. sizes: numbers of rows, ascending. table_width: blocks of the longest.

        record: `record_cuda` by default.
        """
        self._forward, self._sizes = forward, sizes
        self._record = record or record_cuda
        self._buffers = _buffers(sizes[-1], table_width, device)
        self._recorded: dict[int, Run] = {}
        self.refused = ""

    def run(self, batch: Batch) -> torch.Tensor | None:
        """Logits [S, vocabulary], good until the next run; None for a batch that no graph computes.

        A recording that fails is the last that is tried: `refused` says why.
        """
        size = self._size_of(batch)
        if size is None:
            return None
        count = len(batch.tokens)
        padded = _first(self._buffers, size)
        _fill(padded, batch, count)
        if size not in self._recorded:
            try:
                self._recorded[size] = self._record(lambda: self._forward(padded))
            except RuntimeError as error:  # what torch raises for a call that no graph may hold
                self.refused = f"a step of {size} cannot be recorded: {str(error).splitlines()[0]}"
                log.warning("%s; steps run without CUDA graphs", self.refused)
                return None
        return self._recorded[size]()[:count]

    def _size_of(self, batch: Batch) -> int | None:
        """The smallest recorded size that holds the batch."""
        count = len(batch.tokens)
        decodes = len(batch.seq_lens) == len(batch.sample_rows) == count and batch.tree_mask is None
        fits = batch.block_tables.shape[1] <= self._buffers.block_tables.shape[1]
        if self.refused or not (decodes and fits) or count > self._sizes[-1]:
            return None
        return self._sizes[bisect_left(self._sizes, count)]


def _buffers(rows: int, table_width: int, device: torch.device) -> Batch:
    """A batch of padding alone."""

    def numbers(value: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.full(shape, value, dtype=dtype, device=device)

    return Batch(
        tokens=numbers(0, rows),
        positions=numbers(0, rows),
        slot_mapping=numbers(-1, rows),
        block_tables=numbers(0, rows, table_width, dtype=torch.int32),
        seq_lens=numbers(1, rows, dtype=torch.int32),
        query_start_loc=torch.arange(rows + 1, dtype=torch.int32, device=device),
        sample_rows=torch.arange(rows, device=device),
    )


def _first(buffers: Batch, rows: int) -> Batch:
    """The first rows of the buffers, in place."""
    parts = {name: value[:rows] for name, value in vars(buffers).items() if value is not None}
    return Batch(**parts | {"query_start_loc": buffers.query_start_loc[: rows + 1]})


def _fill(padded: Batch, batch: Batch, count: int) -> None:
    """Copy a batch of `count` rows into the buffers; what is behind it is padding again."""
    device = padded.tokens.device
    for name, padding in (("tokens", 0), ("positions", 0), ("slot_mapping", -1), ("seq_lens", 1)):
        buffer = getattr(padded, name)
        buffer[:count] = put(getattr(batch, name), device)
        buffer[count:] = padding
    padded.block_tables[:count, : batch.block_tables.shape[1]] = put(batch.block_tables, device)
    padded.block_tables[count:] = 0


def record_cuda(run: Run) -> Run:
    """Record what `run` launches on the current CUDA device; the result launches all of it again."""
    aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run()

    def again() -> torch.Tensor:
        graph.replay()
        return logits

    return again
