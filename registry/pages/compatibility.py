"""The compatibility page: the matrix, and what a described or pasted environment would get."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from hub_loader.described import describe_environment, from_options
from hub_loader.environment import Environment
from hub_loader.environment_text import parse_environment, summary
from hub_loader.errors import UsageError
from hub_loader.resolver import Decision, best, resolve
from hub_loader.variant import dotted

from .forms import read_form
from .kernel import View, show, view
from .login import require_own_form
from .releases import CUDA, GLIBC, TORCH

MAX_GPUS = 64
_BASE = Environment(python="cp312", arch="x86_64", os="linux", glibc=GLIBC)
_OPTIONS = ("torch", "cuda", "python", "arch", "sm", "glibc", "driver_cuda")


@dataclass(frozen=True)
class Answer:
    """What an environment, named by `summary`, would get: `chosen`, or None where nothing fits."""

    summary: str
    chosen: str | None
    decisions: tuple[Decision, ...]


def show_matrix(request: Request) -> Response:
    """The matrix; with the description's fields in the query also what it would get."""
    shown = view(request)
    stated = {name: request.query_params.get(name, "")[:40].strip() for name in _OPTIONS}
    if not any(stated.values()):
        return _page(request, shown, _defaults())
    try:
        return _page(request, shown, stated, answer=_answer(shown, described(stated)))
    except UsageError as error:
        return _page(request, shown, stated, problem=str(error), status=422)


async def pasted(request: Request) -> Response:
    """What the environment in the form, the output of `khub env --json`, would get."""
    require_own_form(request)
    text = (await read_form(request)).get("environment", "")

    def answer() -> Response:
        shown = view(request)
        try:
            environment = parse_environment(text, origin="what was pasted")
            if len(environment.compute_capabilities) > MAX_GPUS:
                raise UsageError(f"what was pasted names more than {MAX_GPUS} GPUs")
            return _page(request, shown, _defaults(), pasted=text, answer=_answer(shown, environment))
        except UsageError as error:
            return _page(request, shown, _defaults(), pasted=text, problem=str(error), status=422)

    return await run_in_threadpool(answer)


def described(stated: dict[str, str]) -> Environment:
    """The environment of the description's fields; torch without a CUDA is one for the CPU. Raises UsageError."""
    options: dict[str, object] = {name: value for name, value in stated.items() if value}
    if "sm" in options:
        options["sm"] = stated["sm"].replace(",", " ").split()[:MAX_GPUS]
    options["cpu"] = "cuda" not in options and stated["torch"] not in ("", "none")
    return describe_environment(_BASE, from_options(options))


def _answer(shown: View, environment: Environment) -> Answer:
    decisions = resolve(environment, shown.snapshot.package.backends)
    return Answer(summary(environment), best(decisions), decisions)


def _defaults() -> dict[str, str]:
    named = {"torch": TORCH[-1], "cuda": dotted(CUDA[-2]), "python": "3.12", "arch": "x86_64"}
    return {**dict.fromkeys(_OPTIONS, ""), **named, "glibc": dotted(GLIBC)}


def _page(
    request: Request,
    shown: View,
    stated: dict[str, str],
    *,
    pasted: str = "",
    answer: Answer | None = None,
    problem: str = "",
    status: int = 200,
) -> Response:
    return show(
        request,
        "compatibility.html",
        shown,
        status=status,
        tables=shown.snapshot.tables,
        stated=stated,
        pasted=pasted,
        answer=answer,
        problem=problem,
        releases=TORCH[::-1],
        cuda=[dotted(version) for version in CUDA],
    )
