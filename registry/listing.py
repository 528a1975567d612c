"""Which repositories there are: found by name and organization, sorted, in pages."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .auth import identity_of
from .clock import iso
from .downloads import recent, recent_count
from .http import next_page, number, query, service
from .models import Commit, Org, Ref, Repo
from .names import RepoName
from .store import MAIN, RepoInfo

PAGE = 1000


@dataclass(frozen=True)
class Listed:
    """A repository in a list: its row, and the head of `main`."""

    info: RepoInfo
    commit: str
    date: datetime


def list_repos(
    session: Session,
    *,
    orgs: Collection[str],
    author: str = "",
    search: str = "",
    sort: str = "lastModified",
    ascending: bool = False,
    offset: int = 0,
    limit: int = PAGE,
) -> list[Listed]:
    """The public repositories and the private ones of `orgs`; `search` is a part of `org/name` in any case."""
    conditions: list[ColumnElement[bool]] = [or_(Repo.private.is_(False), Org.name.in_(orgs))]
    if author:
        conditions.append(func.lower(Org.name) == author.lower())
    if search:
        conditions.append(func.lower(Org.name + "/" + Repo.name).contains(search.lower(), autoescape=True))
    key = _sort_key(sort)
    rows = session.execute(
        select(Org.name, Repo.name, Repo.id, Repo.private, Repo.gated, Repo.created_at)
        .add_columns(Commit.oid, Commit.created_at.label("modified"))
        .join(Org, Org.id == Repo.org_id)
        .join(Ref, and_(Ref.repo_id == Repo.id, Ref.name == f"heads/{MAIN}"))
        .join(Commit, and_(Commit.repo_id == Repo.id, Commit.oid == Ref.commit_oid))
        .where(*conditions)
        .order_by(key.asc() if ascending else key.desc(), Org.name, Repo.name)
        .offset(offset)
        .limit(limit)
    )
    return [
        Listed(RepoInfo(RepoName(org, name), repo_id, private, gated, created), oid, modified)
        for org, name, repo_id, private, gated, created, oid, modified in rows
    ]


def _sort_key(sort: str) -> ColumnElement[Any]:
    if sort in ("createdAt", "created_at"):
        return Repo.created_at.expression
    if sort in (
        "downloads",
        "downloads30",
        "likes",
        "trendingScore",
        "likes7d",
    ):  # there is no other fame here
        return recent_count(Repo.id)
    return Commit.created_at.expression


def repos(request: Request) -> Response:
    """A page of repositories; the next page's address is in `Link`."""
    who = identity_of(request)
    limit = max(number(request, "limit", default=PAGE, highest=PAGE), 1)
    offset = number(request, "cursor", default=0, highest=1 << 40)
    with service(request).store.read() as session:
        found = list_repos(
            session,
            orgs=[org for org in who.roles if who.reaches(org, None)],
            author=query(request, "author"),
            search=query(request, "search"),
            sort=query(request, "sort"),
            ascending=query(request, "direction") == "1",
            offset=offset,
            limit=limit + 1,
        )
        counts = recent(session, [each.info.repo_id for each in found])
    headers = next_page(request, str(offset + limit)) if len(found) > limit else {}
    described = [describe(each, counts.get(each.info.repo_id, 0)) for each in found[:limit]]
    return JSONResponse(described, headers=headers)


def describe(found: Listed, downloads: int) -> dict[str, Any]:
    """A repository as clients read it, without its files: they list those as a tree."""
    info = found.info
    return {
        "id": str(info.repo),
        "modelId": str(info.repo),
        "author": info.repo.org,
        "sha": found.commit,
        "lastModified": iso(found.date),
        "createdAt": iso(info.created_at),
        "private": info.private,
        "gated": info.gated or False,
        "disabled": False,
        "downloads": downloads,
        "likes": 0,
        "tags": [],
    }
