"""A repository's commits, newest first, and giving a branch a history of one commit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

from sqlalchemy import and_, literal, select, update
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .access import revision_of
from .clock import iso
from .errors import bad_request
from .http import json_body, next_page, number, param, query, repo_of, service, writer
from .models import Commit, Ref
from .names import RepoName, is_commit
from .store import Store, branch_head, insert_commit, snapshot

PAGE = 50
MOST = 1000


@dataclass(frozen=True)
class CommitInfo:
    """One commit of a history."""

    oid: str
    parent: str | None
    author: str
    message: str
    date: datetime


def list_commits(session: Session, repo_id: int, start: str, limit: int) -> Iterator[CommitInfo]:
    """Up to `limit` commits from `start` back to the first."""
    columns = (Commit.oid, Commit.parent_oid, Commit.author, Commit.message, Commit.created_at)
    first = select(*columns, literal(1).label("depth")).where(Commit.repo_id == repo_id, Commit.oid == start)
    chain = first.cte("chain", recursive=True)
    older = select(*columns, chain.c.depth + 1).join(
        chain,
        and_(Commit.repo_id == repo_id, Commit.oid == chain.c.parent_oid, chain.c.depth < limit),
    )
    chain = chain.union_all(older)
    for oid, parent, author, message, date, _ in session.execute(select(chain).order_by(chain.c.depth)):
        yield CommitInfo(oid, parent, author, message, date)


def squash(store: Store, repo: RepoName, branch: str, message: str, author: str) -> None:
    """Make the branch one commit with the files it has. Raises RequestError 404."""
    with store.write() as session:
        head, ref = branch_head(session, repo, branch)
        oid = insert_commit(session, head.repo_id, None, snapshot(session, head), author, message)
        move_ref(session, head.repo_id, ref, oid)


def move_ref(session: Session, repo_id: int, ref: str, oid: str) -> None:
    """Let a reference point to a commit."""
    session.execute(update(Ref).where(Ref.repo_id == repo_id, Ref.name == ref).values(commit_oid=oid))


def commits(request: Request) -> Response:
    """A revision's commits in pages; the next page's address is in `Link`."""
    revision = revision_of(request)
    start = query(request, "cursor") or revision.commit
    if not is_commit(start):
        raise bad_request(f"The cursor {start!r} is no commit: follow the address in Link.")
    limit = max(number(request, "limit", default=PAGE, highest=MOST), 1)
    with service(request).store.read() as session:
        found = list(list_commits(session, revision.repo_id, start, limit + 1))
    headers = next_page(request, found[limit].oid) if len(found) > limit else {}
    formatted = "formatted" in request.query_params.getlist("expand[]")
    return JSONResponse([_describe(commit, formatted) for commit in found[:limit]], headers=headers)


def _describe(commit: CommitInfo, formatted: bool) -> dict[str, Any]:
    title, _, text = commit.message.partition("\n\n")
    described: dict[str, Any] = {
        "id": commit.oid,
        "title": title,
        "message": text,
        "authors": [{"user": commit.author, "avatar": ""}],
        "date": iso(commit.date),
    }
    if formatted:
        described["formatted"] = {"title": escape(title), "message": escape(text)}
    return described


async def super_squash(request: Request) -> Response:
    """Forget a branch's history and keep its files."""
    message = (await json_body(request)).get("message")

    def change() -> None:
        repo, branch = repo_of(request), param(request, "branch")
        author = writer(request, repo.org).name
        squash(service(request).store, repo, branch, str(message or f"Squash {branch}"), author)

    await run_in_threadpool(change)
    return JSONResponse({})
