"""An engine that keeps the logits it chose tokens by."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..engine import LLM
from ..speculation.verify import Walk

Recorded = dict[tuple[int, ...], torch.Tensor]
"""Logits [vocabulary] in float32 after each text, prompt and answer, as token ids."""


class RecordingLLM(LLM):
    """`recorded` grows with every token that is chosen while `recording`."""

    def __init__(self, *args: object, **options: object) -> None:
        # Every token has to pass `_choose`, with its logits.
        super().__init__(*args, **options, asynchronous=False)  # type: ignore[arg-type]
        self.recorded: Recorded = {}
        self.recording = True

    def _choose(self, logits: torch.Tensor, walks: Sequence[Walk]) -> None:
        if self.recording:
            for walk in walks:
                text = (*walk.draws.prompt, *walk.draws.generated)
                self.recorded[text] = logits[walk.row].to(torch.float32, copy=True)
        super()._choose(logits, walks)
