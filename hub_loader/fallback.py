"""What to take when the best is not there, as far as the caller allows, and a record of what was taken. Pure but
for the record.

    exact, stable-abi, tvm-ffi, noarch   variants for the backend asked for, in the resolver's order: always allowed
    cpu                                  a CPU variant although torch has a GPU: with allow_cpu, no backend named
    build                                compiled from the published source: with allow_build
    reference                            the caller's own code, where that was timed and is the fastest (choose.py)

Nothing stands in for a backend that was asked for by name. What was taken, and why, is logged once in a process
and kept for `get_choices`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from .environment import Environment
from .errors import NoMatchingVariantError, UsageError
from .record import Record
from .resolver import Decision, best
from .variant import parse_variant

if TYPE_CHECKING:
    from .verdicts import Verdict

Judge = Callable[[str | None], tuple[Decision, ...]]
Step = Literal["exact", "stable-abi", "tvm-ffi", "noarch", "cpu", "build", "reference"]

_STEPS: dict[str, Step] = {
    "torch": "exact",
    "none": "exact",
    "torch-stable-abi": "stable-abi",
    "tvm-ffi": "tvm-ffi",
    "torch-noarch": "noarch",
}
_BUILDABLE = ("cpu", "cuda")
SUBSTITUTES: tuple[Step, ...] = ("cpu", "build")

logger = logging.getLogger("hub_loader")


class Choice(Record):
    """What is taken of the kernel `what`, and why.

    `variant` is None while it has yet to be built, and for a reference of the caller's own. `backend` is the one it
    runs on, `asked` the one named by the caller, None for the environment's. `decisions` are the verdicts on every
    published variant, `verdict` is what was timed where the fastest was asked for.
    """

    what: str
    step: Step
    variant: str | None
    backend: str
    asked: str | None
    reason: str
    decisions: tuple[Decision, ...]
    verdict: Verdict | None = None
    _uncompared = ("verdict",)


def fall_back(
    what: str,
    environment: Environment,
    judge: Judge,
    backend: str | None = None,
    *,
    allow_cpu: bool = False,
    allow_build: bool = False,
) -> Choice:
    """The first step that gives something. As pure as `judge`.

    Args:
        what: names the kernel in errors and in the record, e.g. "org/name version 1".
        judge: the verdicts on every published variant for a backend, None for the environment's; as `resolve`.
        backend: the one that the caller names, if any.
        allow_cpu: take a CPU variant where none fits the GPU that torch is built for.
        allow_build: else compile from source.

    Raises:
        NoMatchingVariantError: nothing that is allowed fits; the message gives the reason for each variant, and
            what else could be allowed.
        UsageError: an unknown backend, or allow_cpu with a backend that is named.
    """
    if allow_cpu and backend is not None:
        raise UsageError(
            f"{what}: backend={backend!r} names the backend, so allow_cpu has nothing to allow: leave one out"
        )
    wanted = backend or environment.backend
    decisions = judge(backend)
    chosen = best(decisions)
    if chosen is not None:
        return Choice(what, step_of(chosen), chosen, wanted, backend, decisions[0].reason, decisions)
    on_cpu = judge("cpu") if backend is None and wanted != "cpu" else ()
    cpu = best(on_cpu)
    if allow_cpu and cpu is not None:
        why = f"no variant fits {wanted}, and the CPU is allowed: {on_cpu[0].reason}"
        return Choice(what, "cpu", cpu, "cpu", backend, why, decisions)
    refusal = _refusal(what, decisions)
    if allow_build and wanted in _BUILDABLE:
        why = f"no published variant fits {wanted}, and building is allowed"
        return Choice(what, "build", None, wanted, backend, why, decisions)
    raise NoMatchingVariantError(refusal + _hints(wanted, cpu, allow_build))


def step_of(variant: str) -> Step:
    """The step that a published variant for the backend asked for is."""
    return _STEPS[parse_variant(variant).framework.name]


def record(choice: Choice, revision: str) -> None:
    """Keep `choice`, made at the commit `revision`, for `get_choices`; log it the first time in this process.

    A substitute (cpu, build) is logged as a warning.
    """
    with _lock:
        if (revision, choice) in _choices:
            return
        _choices[revision, choice] = None
    level = logging.WARNING if choice.step in SUBSTITUTES else logging.INFO
    named = f"{choice.variant} ({choice.step})" if choice.variant else choice.step
    logger.log(level, "%s: %s: %s", choice.what, named, choice.reason)


def get_choices() -> list[tuple[str, Choice]]:
    """What was taken in this process, oldest first: (commit, choice)."""
    with _lock:
        return list(_choices)


_lock = threading.Lock()
_choices: dict[tuple[str, Choice], None] = {}  # a set that keeps the order


def _refusal(what: str, decisions: tuple[Decision, ...]) -> str:
    reasons = "; ".join(f"{decision.variant} {decision.reason}" for decision in decisions)
    return f"{what} has no variant that fits here: {reasons or 'it has none at all'}"


def _hints(wanted: str, cpu: str | None, allow_build: bool) -> str:
    hints = []
    if cpu is not None:
        hints.append(f"allow_cpu=True would take {cpu}, for tensors on the CPU")
    if wanted in _BUILDABLE and not allow_build:
        hints.append("allow_build=True would compile it here, if its source is published")
    return "".join(f"; {hint}" for hint in hints)
