"""Every change over the wire leaves an entry in the audit log before its sender is told of success.

The server may die between a change and its entry: then nobody was told that the change happened, and the
commit itself says who made it. Refusals of tokens we know are entries as well; what strangers try is not,
so that they cannot fill the log.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .accounts.audit import Actor, record
from .accounts.identity import Identity
from .store import Store
from .throttle import address_of

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
# Requests by POST that change nothing, or whose handler writes an entry of its own.
_SILENT = frozenset({"preupload", "paths_info", "validate_yaml", "batch", "verify", "exchange", "pasted"})
_DETAILS = frozenset({"revision", "branch", "num"})  # parts of an address that belong into an entry
_NAMES = {
    "commit": "repo.commit",
    "create_repo": "repo.create",
    "delete_repo": "repo.delete",
    "create_branch": "branch.create",
    "delete_branch": "branch.delete",
    "create_tag": "tag.create",
    "delete_tag": "tag.delete",
    "change_settings": "repo.settings",
    "move_repo": "repo.move",
    "super_squash": "branch.squash",
    "create_pull": "pull.create",
    "merge_pull": "pull.merge",
    "set_pull_status": "pull.status",
    "ask_access": "access.ask",
    "grant_access": "access.grant",
    "handle_access": "access.decide",
    "make_own_token": "token.create",
    "revoke_own_token": "token.revoke",
}


class AuditLog:
    """Middleware that writes the entry between a handler's answer and its sending."""

    def __init__(self, app: ASGIApp, store: Store) -> None:
        self._app = app
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _READING:
            await self._app(scope, receive, send)
            return

        async def recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._record(scope, message["status"])
            await send(message)

        scope.setdefault("state", {})  # before others copy the scope: the handler's notes are read here
        await self._app(scope, receive, recorded)

    async def _record(self, scope: Scope, status: int) -> None:
        state = scope["state"]
        identity: Identity | None = state.get("identity")
        action = getattr(scope.get("endpoint"), "__name__", "")
        if identity is None or identity.anonymous or not action or action in _SILENT:
            return
        detail = {
            name: unquote(str(scope["path_params"][name])) for name in _DETAILS & {*scope["path_params"]}
        }
        detail |= state.get("detail", {})
        if identity.label:
            detail["label"] = identity.label
        actor = Actor(actor_name(identity), address_of(scope), identity.token_id)
        await run_in_threadpool(self._write, actor, action, state.get("subject", ""), status, detail)

    def _write(self, actor: Actor, action: str, subject: str, status: int, detail: dict[str, Any]) -> None:
        with self._store.write() as session:
            record(session, actor, _NAMES.get(action, action), subject, status=status, **detail)


def actor_name(identity: Identity) -> str:
    """How the log calls an identity: `user:ada`, `org:acme`."""
    return f"{identity.kind}:{identity.name}"
