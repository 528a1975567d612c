"""How many replicas there should be: by the tokens that are still to be computed.

Ray Serve runs a copy of this module in its controller, so it needs nothing but Python.
"""

from __future__ import annotations

import math
from typing import Any

QUEUED_TOKENS = "queued_tokens"


class ByQueuedTokens:
    """A replica for every `per_replica` tokens; Ray Serve applies the bounds and the delays."""

    def __init__(self, per_replica: int) -> None:
        self._per_replica = per_replica

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """`context`: Ray Serve's AutoscalingContext, with each replica's mean over the last seconds."""
        queued = (context.aggregated_metrics or {}).get(QUEUED_TOKENS, {})
        return max(1, math.ceil(sum(queued.values()) / self._per_replica)), {}
