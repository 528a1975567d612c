"""A kernel's pages: its card, files, versions, provenance and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hub_loader.manifest import python_name

from ..access import fetch, repo_info
from ..history import list_commits
from ..http import base_url, param, service
from ..names import RepoName
from ..store import MAIN, RefInfo
from .browse import catalog
from .card import render_card
from .catalog import Snapshot, version_of
from .charts import BAR_SPAN, benchmark_bars, downloads_chart
from .reader import reader
from .render import page

_CHANGES = 30
_FILES = 500


@dataclass(frozen=True)
class View:
    """What all pages of one kernel need. `name` is the branch, tag or commit that is shown."""

    repo: RepoName
    name: str
    snapshot: Snapshot
    refs: tuple[RefInfo, ...]

    @property
    def version(self) -> int | None:
        """The version's number, where a version is shown."""
        return version_of(self.name)

    @property
    def versions(self) -> tuple[int, ...]:
        """The numbers of all versions, newest first."""
        return versions(self.refs)

    @property
    def base(self) -> str:
        """The kernel's address."""
        return f"/kernels/{quote(str(self.repo))}"

    def tab(self, name: str) -> str:
        """The address of one of its pages, for the version that is shown."""
        path = f"{self.base}/{name}" if name else self.base
        return path if self.name == newest(self.refs) else f"{path}?revision={quote(self.name, safe='')}"

    def at(self, name: str) -> str:
        """The address of its card at another version."""
        return f"{self.base}?revision={quote(name, safe='')}"

    def file(self, path: str) -> str:
        """The address that a file is downloaded from."""
        return f"{self.base}/resolve/{self.snapshot.revision.commit}/{quote(path)}"

    def tree(self, name: str) -> str:
        """The address of the list of files at a revision."""
        return f"{self.base}/tree/{quote(name, safe='')}"


def versions(refs: tuple[RefInfo, ...]) -> tuple[int, ...]:
    """The versions among the branches, newest first."""
    branches = [ref.name for ref in refs if ref.ref.startswith("refs/heads/")]
    return tuple(sorted((n for n in map(version_of, branches) if n is not None), reverse=True))


def newest(refs: tuple[RefInfo, ...]) -> str:
    """The branch that is shown where none is asked for: the newest version's, else `main`."""
    numbers = versions(refs)
    return f"v{numbers[0]}" if numbers else MAIN


def view(request: Request, name: str | None = None) -> View:
    """The kernel in the address at `name`, else at the query's `revision`.

    Raises RequestError 404, also for who may not see it, and 401 or 403 for a gated one.
    """
    reader(request)
    found, store = repo_info(request), service(request).store
    fetch(request, found)
    repo = found.repo
    refs = tuple(ref for ref in store.refs(repo) if not ref.ref.startswith("refs/pr/"))
    name = name or request.query_params.get("revision") or newest(refs)
    return View(repo, name, catalog(request).snapshot(store.resolve(repo, name)), refs)


def show(request: Request, template: str, shown: View, *, status: int = 200, **context: Any) -> Response:
    """Render one of a kernel's pages."""
    return page(request, template, status, view=shown, package=shown.snapshot.package, **context)


def card(request: Request) -> Response:
    """The kernel's first page: card, how to use it, versions, downloads."""
    shown = view(request)
    package = shown.snapshot.package
    return show(
        request,
        "card.html",
        shown,
        card=render_card(
            package.readme, shown.file("").rstrip("/") + "/", package.index.name if package.index else ""
        ),
        endpoint=base_url(request),
        module=python_name(package.index.name if package.index else shown.repo.name),
        downloads=downloads_chart(catalog(request).downloads(shown.snapshot.revision.repo_id), date.today()),
    )


def tree(request: Request) -> Response:
    """Every file of a revision, with its size and digest."""
    shown = view(request, param(request, "revision"))
    entries = list(shown.snapshot.entries.values())
    return show(request, "files.html", shown, entries=entries[:_FILES], total=len(entries))


def commit(request: Request) -> Response:
    """The address that clients print after a commit: its files."""
    shown = view(request, param(request, "revision"))
    return RedirectResponse(shown.tree(shown.snapshot.revision.commit), 307)


def versions_page(request: Request) -> Response:
    """Versions, other branches and tags, and the history of the one shown."""
    shown = view(request)
    store = service(request).store
    start = shown.snapshot.revision
    asked = request.query_params.get("from")
    first = store.resolve(shown.repo, asked) if asked else start
    with store.read() as session:
        found = list(list_commits(session, first.repo_id, first.commit, _CHANGES + 1))
    more = found[_CHANGES].oid if len(found) > _CHANGES else None
    heads = _heads(request, shown)
    return show(request, "versions.html", shown, changes=found[:_CHANGES], more=more, heads=heads)


def _heads(request: Request, shown: View) -> list[tuple[RefInfo, Any]]:
    store = service(request).store
    known = {f"v{number}": -number for number in shown.versions}
    refs = sorted(shown.refs, key=lambda ref: (known.get(ref.name, 1), ref.ref))[:100]
    return [(ref, store.resolve(shown.repo, ref.ref).date) for ref in refs]


def provenance(request: Request) -> Response:
    """Signature, builder and what each variant was made of."""
    return show(request, "provenance.html", view(request))


def benchmarks(request: Request) -> Response:
    """The published results, drawn and as tables."""
    shown = view(request)
    results = [(result, benchmark_bars(result)) for result in shown.snapshot.package.benchmarks]
    return show(request, "benchmarks.html", shown, results=results, span=BAR_SPAN)
