"""The shapes that models ask for, and the grid of batches and contexts they are asked at. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """Widths of one layer, from the model's published configuration."""

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int


MODELS = {
    "llama-3-8b": Model(4096, 32, 8, 128, 14336),
    "llama-3-70b": Model(8192, 64, 8, 128, 28672),
    "qwen3-0.6b": Model(1024, 16, 8, 128, 3072),
    "qwen3-1.7b": Model(2048, 16, 8, 128, 6144),
    "qwen3-4b": Model(2560, 32, 8, 128, 9728),
    "qwen3-8b": Model(4096, 32, 8, 128, 12288),
    "qwen3-14b": Model(5120, 40, 8, 128, 17408),
    "qwen3-32b": Model(5120, 64, 8, 128, 25600),
}

BATCHES = {"quick": (1, 16), "full": (1, 4, 16, 64, 256)}
CONTEXTS = {"quick": (1024, 4096), "full": (128, 1024, 4096, 16384, 65536, 131072)}


def attention_grid(model: Model, extent: str, itemsize: int, memory: int) -> Iterator[tuple[int, int, bool]]:
    """Batch, context, and whether three times its cache (the peer gathers, then lays out) is in 3/4 of `memory`."""
    for batch in BATCHES[extent]:
        for context in CONTEXTS[extent]:
            cache = 2 * batch * context * model.kv_heads * model.head_size * itemsize
            yield batch, context, 3 * cache <= memory * 3 // 4
