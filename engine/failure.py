"""What ended a request that could not go on, in words for whoever reads its error."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from hub_loader.errors import ComputeError, KernelHubError, UsageError

from .kernel_table import TORCH, Binding

log = logging.getLogger(__name__)


def explained(failure: Exception | None, request_id: int, bindings: Iterable[Binding]) -> Exception | None:
    """The error of a request whose step met `failure`, of the family. What is not the request's own fault is logged."""
    if failure is None:
        return None
    if isinstance(failure, ComputeError):
        error = ComputeError(f"request {request_id}: {failure}: {suspects(bindings)}")
        log.error("%s", error)
        return error
    if isinstance(failure, KernelHubError):
        return failure
    log.error("Request %d failed on the way", request_id, exc_info=failure)
    return UsageError(
        f"request {request_id}: its json_schema, regex or text failed on the way: "
        f"{type(failure).__name__}: {failure}; send it without"
    )


def suspects(bindings: Iterable[Binding]) -> str:
    """Who may have computed what is not finite, and how to find out."""
    slots: dict[str, list[str]] = {}
    for each in bindings:
        if each.source != TORCH:
            slots.setdefault(f"{each.source} {each.version} ({each.variant})", []).append(each.slot)
    if not slots:
        return "every slot is plain torch, so the model's weights or its dtype are wrong; try float32 or another model"
    found = "; ".join(f"{provider} in {', '.join(names)}" for provider, names in slots.items())
    return (
        f"a kernel, the weights or the dtype is wrong; the kernels are {found}; put torch in their place, or "
        "run `khub engine compare` on one slot after the other"
    )
