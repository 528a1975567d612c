"""The Hub's discussions, of which there are pull requests here: list, read, open, close, merge."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from . import pulls
from .access import repo_info
from .clock import iso
from .errors import RequestError, bad_request, not_implemented
from .http import json_body, kind_of, number, param, query, repo_of, service, writer
from .names import RepoName
from .pulls import PullInfo
from .store import MAIN

PAGE = 50
_STATUSES = {"open": [pulls.OPEN, pulls.DRAFT], "closed": [pulls.CLOSED, pulls.MERGED]}


def discussions(request: Request) -> Response:
    """A page of pull requests, newest first."""
    found = repo_info(request)
    wanted = _STATUSES.get(query(request, "status"), pulls.STATES)
    if query(request, "type") == "discussion":
        wanted = []
    start = number(request, "p", default=0, highest=1 << 30) * PAGE
    with service(request).store.read() as session:
        total, rows = pulls.list_pulls(
            session,
            found.repo_id,
            statuses=wanted,
            author=query(request, "author"),
            offset=start,
            limit=PAGE,
        )
    listed = [_describe(request, found.repo, pull) for pull in rows]
    return JSONResponse({"discussions": listed, "count": total, "start": start, "numClosedDiscussions": 0})


def discussion(request: Request) -> Response:
    """A pull request: the branch it is for, what keeps it from being merged, and its description."""
    repo = repo_info(request).repo
    store = service(request).store
    pull, base_oid = pulls.find_pull(store, repo, _num(request))
    done = pull.status == pulls.MERGED
    comment = {
        "id": str(pull.num),
        "type": "comment",
        "createdAt": iso(pull.created_at),
        "author": {"name": pull.author},
        "data": {
            "edited": False,
            "hidden": False,
            "latest": {
                "raw": pull.description,
                "html": "",
                "updatedAt": iso(pull.created_at),
                "author": {"name": pull.author},
            },
            "history": [],
        },
    }
    changes = {"base": f"refs/{pull.base}", "mergeCommitId": pull.merge_oid}
    more = {
        "filesWithConflicts": [] if done else pulls.conflicting(store, repo, pull, base_oid),
        "changes": changes,
        "events": [comment],
        "diff": None,
    }
    return JSONResponse(_describe(request, repo, pull) | more)


async def create_pull(request: Request) -> Response:
    """Open a pull request without a commit yet."""
    body = await json_body(request)
    title, text = body.get("title"), body.get("description") or ""
    if not body.get("pullRequest"):
        raise not_implemented("This hub has pull requests and no discussions: create a pull request.")
    if not isinstance(title, str) or not title.strip() or not isinstance(text, str):
        raise bad_request("A pull request needs a title.")

    def write() -> int:
        repo = repo_of(request)
        author = writer(request, repo.org).name
        store = service(request).store
        message = title.strip()[:200]
        return pulls.open_pull(store, repo, MAIN, None, message=message, author=author, description=text)[0]

    num = await run_in_threadpool(write)
    pull, _ = await run_in_threadpool(pulls.find_pull, service(request).store, repo_of(request), num)
    return JSONResponse(_describe(request, repo_of(request), pull))


async def merge_pull(request: Request) -> Response:
    """Merge a pull request into its branch."""
    await json_body(request)

    def write() -> str:
        repo = repo_of(request)
        author = writer(request, repo.org).name
        return pulls.merge(service(request).store, repo, _num(request), author)

    return JSONResponse({"mergeCommitId": await run_in_threadpool(write)})


async def set_pull_status(request: Request) -> Response:
    """Close a pull request or open it again."""
    wanted = (await json_body(request)).get("status")
    if wanted not in (pulls.OPEN, pulls.CLOSED):
        raise bad_request(f"A pull request becomes 'open' or 'closed', not {wanted!r}.")

    def write() -> dict[str, Any]:
        repo = repo_of(request)
        author = writer(request, repo.org).name
        pulls.set_status(service(request).store, repo, _num(request), wanted)
        pull, _ = pulls.find_pull(service(request).store, repo, _num(request))
        event = {"id": f"{pull.num}-{wanted}", "type": "status-change", "createdAt": iso(pull.created_at)}
        return event | {"author": {"name": author}, "data": {"status": wanted}}

    return JSONResponse({"newStatus": await run_in_threadpool(write)})


def no_comments(request: Request) -> Response:
    """Nothing is said on pull requests here."""
    raise not_implemented(
        f"This hub's pull requests take no {param(request, 'rest')!r}: only status and merge."
    )


def _num(request: Request) -> int:
    text = param(request, "num")
    if not (text.isascii() and text.isdigit() and len(text) < 9):
        raise RequestError(404, f"{text!r} is not the number of a pull request.")
    return int(text)


def _describe(request: Request, repo: RepoName, pull: PullInfo) -> dict[str, Any]:
    return {
        "num": pull.num,
        "title": pull.title,
        "author": {"name": pull.author},
        "repo": {"name": str(repo), "type": kind_of(request).removesuffix("s")},
        "status": pull.status,
        "createdAt": iso(pull.created_at),
        "isPullRequest": True,
        "numComments": 1,
    }
