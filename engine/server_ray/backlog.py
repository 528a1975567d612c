"""How much a replica has still to do, and whether it does it."""

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


def stalled_seconds(jobs: Iterable[Job], beat: float, now: float) -> float:
    """For how long there has been work of which nothing was done; `beat`: when something last was.

    An engine that had nothing to do has an old beat when work comes.
    """
    oldest = min((job.times.created for job in jobs), default=now)
    return now - max(beat, oldest)
