"""Who is looking at a page, and what that lets them see in lists."""

from __future__ import annotations

from starlette.requests import Request

from ..accounts.identity import Identity
from ..accounts.may import Action, Allowed, RepoFacts, may
from ..auth import identity_of, session
from ..names import RepoName


def reader(request: Request) -> Identity:
    """By the request's token, else by the browser's login, which nothing but pages looks at."""
    if "authorization" not in request.headers:
        request.state.identity = session(request)
    return identity_of(request)


def may_read(
    identity: Identity, repo: RepoName, *, private: bool, gated: bool, granted: bool = False
) -> bool:
    """Whether somebody may read a repository's files; `granted`: their request for the gated one was accepted."""
    facts = RepoFacts(repo.org, repo.name, private, gated, granted)
    return isinstance(may(identity, Action.READ, facts), Allowed)
