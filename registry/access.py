"""Who sees a repository: everybody, unless it is private or gated.

A private repository does not exist for strangers. A gated one is listed with its files' names for everybody;
the files themselves are for members of its organization and for those whose request was accepted.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request

from .accounts.identity import Identity
from .accounts.may import Action, RepoFacts
from .auth import authorize, identity_of
from .errors import RequestError
from .http import param, repo_of, service
from .models import RepoAccess
from .store import MAIN, RepoInfo, Revision

ACCEPTED = "accepted"


def see(request: Request, found: RepoInfo | Revision) -> None:
    """Nothing, if the request may know of the repository. Raises RequestError 404 as if there were none."""
    if found.private:
        authorize(request, Action.READ, RepoFacts(found.repo.org, found.repo.name, private=True))


def fetch(request: Request, found: RepoInfo | Revision) -> None:
    """Nothing, if the request may have the repository's files. Raises RequestError 404, 401 or 403."""
    if found.private or found.gated:
        let_in = bool(found.gated) and _granted(request, found.repo_id, identity_of(request))
        facts = RepoFacts(found.repo.org, found.repo.name, found.private, bool(found.gated), let_in)
        authorize(request, Action.READ, facts)


def granted_repos(session: Session, who: Identity) -> set[int]:
    """The gated repositories that somebody was let into, by id."""
    if who.anonymous:
        return set()
    query = select(RepoAccess.repo_id).where(RepoAccess.account == who.name, RepoAccess.status == ACCEPTED)
    return set(session.scalars(query))


def repo_info(request: Request) -> RepoInfo:
    """The repository that the URL names. Raises RequestError 404 where there is none to see."""
    _look_upstream(request, None)
    found = service(request).store.repo(repo_of(request))
    see(request, found)
    return found


def revision_of(request: Request) -> Revision:
    """The revision that the URL names, or the head of `main`. Raises RequestError 404."""
    name = param(request, "revision") if "revision" in request.path_params else MAIN
    _look_upstream(request, name)
    try:
        found = service(request).store.resolve(repo_of(request), name)
    except RequestError as error:
        if error.code == "RevisionNotFound":  # which tells that the repository is there
            repo_info(request)
        raise
    see(request, found)
    return found


def _look_upstream(request: Request, revision: str | None) -> None:
    """Let the mirror, if there is one, bring what the URL names; the answer says so (`mirror_header.py`)."""
    if (mirror := service(request).mirror) is not None:
        request.state.mirror = mirror.prepare(repo_of(request), revision)


def _granted(request: Request, repo_id: int, who: Identity) -> bool:
    if who.anonymous:
        return False
    query = select(RepoAccess.status).where(RepoAccess.repo_id == repo_id, RepoAccess.account == who.name)
    with service(request).store.read() as session:
        return session.scalar(query) == ACCEPTED
