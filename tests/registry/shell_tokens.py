"""Tokens of an organization, made and listed in the database as `khub registry token` does."""

from __future__ import annotations

from registry.accounts import tokens
from registry.accounts.audit import record, shell
from registry.accounts.directory import ensure_org
from registry.accounts.identity import Scope
from registry.accounts.tokens import NewToken, TokenInfo, utc_now
from registry.store import Store


def create_token(store: Store, org: str, *, can_write: bool) -> str:
    """Make a token of `org`, creating the organization if it is new; returns the secret."""
    with store.write() as opened:
        row = ensure_org(opened, shell(), org)
        scope = Scope.WRITE if can_write else Scope.READ
        secret, token = tokens.issue(opened, NewToken(scope, org_id=row.id), utc_now())
        record(opened, shell(), "token.create", org, token=token.id, scope=str(scope))
    return secret


def list_tokens(store: Store) -> list[TokenInfo]:
    """Every token that works, oldest first."""
    now = utc_now()
    with store.read() as opened:
        return [token for token in tokens.list_tokens(opened) if not token.state(now)]
