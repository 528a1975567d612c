"""What an owner changes about a repository: its name, and who may see it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, update
from sqlalchemy.exc import IntegrityError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .accounts.limits import check_move
from .accounts.may import Action
from .errors import bad_request, conflict
from .http import json_body, repo_of, repo_url, service, writer
from .locks import lock_repo, put
from .mirrored import refuse_change
from .models import Repo, RepoMove
from .names import RepoName, check_org, check_repo_name
from .naming import ensure_org
from .store import Store, find_repo, require_repo

_VISIBILITY = {"public": False, "private": True}
_GATED = {False: None, "auto": "auto", "manual": "manual"}


def wants_private(body: dict[str, Any]) -> bool | None:
    """What a body says in either of the clients' spellings; None if nothing. Raises RequestError 400."""
    visibility, private = body.get("visibility"), body.get("private")
    if visibility is not None:
        if not isinstance(visibility, str) or visibility not in _VISIBILITY:
            raise bad_request(f"A repository here is 'public' or 'private', not {visibility!r}.")
        return _VISIBILITY[visibility]
    if private is not None and not isinstance(private, bool):
        raise bad_request(f"`private` is true or false, not {private!r}.")
    return private


async def change_settings(request: Request) -> Response:
    """Make a repository private or public, gated or not."""
    body = await json_body(request)
    values: dict[str, Any] = {}
    if (private := wants_private(body)) is not None:
        values["private"] = private
    if "gated" in body:
        if not isinstance(body["gated"], (bool, str)) or body["gated"] not in _GATED:
            raise bad_request(f"`gated` is 'auto', 'manual' or false, not {body['gated']!r}.")
        values["gated"] = _GATED[body["gated"]]
    if not values:
        raise bad_request("Name a setting that exists here: `visibility`, `private` or `gated`.")

    def write() -> None:
        repo = repo_of(request)
        writer(request, repo.org, action=Action.MANAGE)
        with service(request).store.write() as session:
            found = require_repo(session, repo)
            session.execute(update(Repo).where(Repo.id == found.repo_id).values(**values))

    await run_in_threadpool(write)
    return JSONResponse({})


async def move_repo(request: Request) -> Response:
    """Rename a repository; its former names lead to it until another repository takes them."""
    body = await json_body(request)
    old, new = (_full_name(body.get(key)) for key in ("fromRepo", "toRepo"))
    kind = "kernels" if body.get("type") == "kernel" else "models"

    def write() -> None:
        writer(request, old.org, old.name, Action.MANAGE)
        with service(request).store.read() as session:
            refuse_change(session, old)
        writer(request, new.org, new.name, Action.CREATE)
        rename(service(request).store, old, new)

    await run_in_threadpool(write)
    return JSONResponse({"url": repo_url(request, kind, new)})


def _full_name(text: object) -> RepoName:
    org, slash, name = text.partition("/") if isinstance(text, str) else ("", "", "")
    if not slash:
        raise bad_request(f"{text!r} is not 'ORG/NAME': name both repositories in full.")
    return RepoName(check_org(org), check_repo_name(name))


def rename(store: Store, old: RepoName, new: RepoName) -> None:
    """Give a repository another name. Raises RequestError 404, or 409 if the name is taken."""
    taken = conflict(f"The repository {new} exists already: choose another name.")
    with store.write() as session:
        lock_repo(session, old)
        found = require_repo(session, old)
        if old == new:
            return
        if find_repo(session, new) is not None:
            raise taken
        session.execute(delete(RepoMove).where(RepoMove.org == new.org, RepoMove.name == new.name))
        org_id = ensure_org(session, new.org)
        check_move(session, found.repo_id, org_id)
        values = {"org_id": org_id, "name": new.name}
        try:
            session.execute(update(Repo).where(Repo.id == found.repo_id).values(**values))
        except IntegrityError:  # somebody else took the name since it was looked up
            raise taken from None
        put(session, RepoMove, {"org": old.org, "name": old.name, "repo_id": found.repo_id})
