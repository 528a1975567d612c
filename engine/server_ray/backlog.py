"""How much a replica has still to do, in tokens."""

from __future__ import annotations

from collections.abc import Iterable

from ..server.job import Job

EXPECTED = 256  # tokens that are counted for an answer at most: few use up all that they may have


def queued_tokens(jobs: Iterable[Job]) -> int:
    """Tokens of prompts whose computation has not begun, and those that answers may still have."""
    total = 0
    for job in jobs:
        if job.over:
            continue
        if job.times.started is None:
            total += sum(map(len, job.prompts))
        left = job.choices * min(EXPECTED, job.params.max_tokens) - job.generated
        total += max(0, left)
    return total
