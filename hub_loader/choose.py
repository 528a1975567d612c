"""`get_kernel(choose="fastest")`: what is fastest for one workload, of the variants that fit and the caller's own code.

The best variant of each kind (exact, stable ABI, tvm-ffi, noarch) is fetched, loaded and timed once. The verdict is
kept under the variants' digests, the device, torch and the arguments: with it the fastest alone is fetched and loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import Any

from .autotune import Fastest, Prepare
from .errors import InvalidKernelError, MissingDependencyError, NoMatchingVariantError, UsageError
from .fallback import SUBSTITUTES, Choice, Step, record, step_of
from .pin import Version
from .request import Request
from .source import Found, HubSource, fetch_verified, judge, load_tree
from .verdicts import Verdict, cuda_device, describe_arguments, read_verdict, report, verdict_key


@dataclass(frozen=True)
class Workload:
    """The call by which implementations are compared: `function` with these arguments, on the device they are on.

    `function` is a name in the kernel's module, with dots where it lies deeper. It is called repeatedly with the
    arguments themselves; one that writes to its inputs needs `prepare`, which makes fresh ones outside of the time
    measured.
    """

    function: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    prepare: Prepare | None = None


@dataclass(frozen=True)
class Question:
    """What `get_kernel` was asked to compare: one workload, with `references` of the caller's by name."""

    workload: Workload
    references: Mapping[str, Any]

    def key(self) -> Hashable:
        """Equal where the answer is the same, within a process."""
        args, kwargs = self.workload.args, self.workload.kwargs
        references = tuple((name, id(module)) for name, module in self.references.items())
        return self.workload.function, describe_arguments(args, kwargs), cuda_device(args, kwargs), references


def make_question(choose: str, workload: Workload | None, references: Mapping[str, Any] | None) -> Question:
    """The question, where more than the best is asked for. Raises UsageError if the arguments contradict each other."""
    if choose != "fastest":
        raise UsageError(
            f'choose={choose!r}: write choose="fastest", which takes workload= and references=, or leave all out'
        )
    if not isinstance(workload, Workload):
        raise UsageError(
            'choose="fastest" has to know what to time: pass workload=Workload("function", (arguments,))'
        )
    return Question(workload, dict(references or {}))


def load_fastest(source: HubSource, request: Request, question: Question) -> ModuleType:
    """Load what is fastest for the workload; one of the references is returned as it is.

    What cannot be imported here is passed over and reported. What is refused raises, as it does for `get_kernel`.

    Raises:
        NoMatchingVariantError: nothing fits, or nothing that fits runs with these arguments.
        UsageError: a reference is called like a variant.
        KernelHubError: as `load_tree`.
    """
    if request.repo_id in (source.overrides or {}):
        return load_tree(source, request)  # whoever names a folder wants that one
    version, choice = source.choose(request)
    references = question.references
    if choice.variant is None and not references:
        return load_tree(source, request)
    candidates = _candidates(source, request, version, choice)
    if references.keys() & candidates.keys():
        raise UsageError(f"{request}: a reference is called like a variant: give it another name")
    if len(candidates) + len(references) == 1:
        return load_tree(source, request)

    def load(name: str) -> Any:
        return references[name] if name in references else load_tree(candidates[name], request)

    ids = {name: name for name in references} | {name: one.digest for name, one in candidates.items()}
    verdict = _find_verdict(source, question.workload, ids, load)
    taken = _choice(choice, verdict, candidates)
    record(taken, version.commit)
    module: ModuleType = load(verdict.chosen)
    return module


@dataclass(frozen=True)
class _Candidate:
    """One variant, as a source of it and of what it depends on."""

    source: HubSource
    request: Request
    digest: str
    find_it: Callable[[], Found]

    def find(self, request: Request) -> Found:
        """As `Source.find`."""
        return self.find_it() if request == self.request else self.source.find(request)


def _candidates(
    source: HubSource, request: Request, version: Version, choice: Choice
) -> dict[str, _Candidate]:
    """The best variant of each kind, best first; where none fits, the one built from source."""
    if choice.variant is None:
        found = source.build(request, version, choice)
        return {found.variant: _Candidate(source, request, found.package.digest, lambda: found)}
    decisions = choice.decisions
    if choice.step == "cpu":
        decisions = judge(source.config, request, version, source.environment, "cpu")
    kinds: dict[Step, str] = {}
    for decision in decisions:
        if decision.accepted:
            kinds.setdefault(step_of(decision.variant), decision.variant)
    return {
        name: _Candidate(
            source,
            request,
            version.variants[name].key,
            partial(fetch_verified, source.config, request, version, name),
        )
        for name in kinds.values()
    }


def _find_verdict(
    source: HubSource, workload: Workload, ids: Mapping[str, str], load: Callable[[str], Any]
) -> Verdict:
    """The verdict on the implementations `ids` (a digest, or a reference's name, of each); loads them to time them."""
    cache, args, kwargs = source.config.cache, workload.args, workload.kwargs
    keys = {name: f"{workload.function} of {digest}" for name, digest in ids.items()}
    known = read_verdict(cache, verdict_key(keys, args, kwargs), keys)
    if known is not None:
        return known
    functions: dict[str, Callable[..., Any]] = {}
    absent: dict[
        str, str
    ] = {}  # no part of a verdict that is kept: what is missing may be installed tomorrow
    for name in keys:
        try:
            functions[name] = attrgetter(workload.function)(load(name))
        except (AttributeError, InvalidKernelError, MissingDependencyError) as error:
            absent[name] = str(error)
    if not functions:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise NoMatchingVariantError(f"no implementation has {workload.function!r} here: {reasons}")
    fastest = Fastest(
        functions,
        ids={name: keys[name] for name in functions},
        cache=cache,
        prepare=workload.prepare,
        say=lambda line: None,  # `record` says it
    )
    verdict = fastest.verdict(*args, **kwargs)
    return replace(verdict, failed={**verdict.failed, **absent})


def _choice(choice: Choice, verdict: Verdict, candidates: Mapping[str, object]) -> Choice:
    """What was decided without timing, as the verdict has it."""
    reason = report(verdict)
    if verdict.chosen not in candidates:
        return replace(choice, step="reference", variant=None, reason=reason, verdict=verdict)
    step = choice.step if choice.step in SUBSTITUTES else step_of(verdict.chosen)
    return replace(choice, step=step, variant=verdict.chosen, reason=reason, verdict=verdict)
