"""What clients ask about accounts: whose token this is, who is in an organization, what happened there."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .accounts import audit, directory, tokens
from .accounts.identity import Identity, Kind, Role
from .accounts.may import Action, RepoFacts
from .auth import authorize, identity_of
from .clock import iso
from .errors import RequestError, bad_request, unauthorized
from .http import param, service
from .models import Org, Token, User

_ROLES = {Role.OWNER: "admin", Role.WRITER: "write", Role.READER: "read"}  # the Hub's words
_MOST_EVENTS = 1000


def whoami(request: Request) -> Response:
    """Whose token this is, in the shapes that the Hub has for a user's and for an organization's."""
    identity = identity_of(request)
    if identity.token_id is None:
        raise unauthorized(
            f"A request to say who you are needs a token and {identity.unknown}: "
            "`khub registry token create` makes one."
        )
    with service(request).store.read() as session:
        token = tokens.token_info(session, session.get_one(Token, identity.token_id))
        full_name = identity.name
        if identity.user_id is not None:
            full_name = session.get_one(User, identity.user_id).full_name or identity.name
    access = {
        "displayName": token.label or token.hint,
        "role": token.scope,
        "createdAt": iso(token.created_at),
    }
    if token.expires_at is not None:
        access["expiresAt"] = iso(token.expires_at)
    about: dict[str, Any] = {
        "type": "user" if identity.kind is Kind.USER else "org",
        "id": identity.name,
        "name": identity.name,
        "fullname": full_name,
        "avatarUrl": "",
        "orgs": [_membership(identity, org, role) for org, role in sorted(identity.roles.items())],
        "auth": {"type": "access_token", "accessToken": access},
    }
    if identity.kind is Kind.USER:
        about |= {"email": None, "emailVerified": False, "isPro": False, "canPay": False, "periodEnd": None}
    else:  # as a member of itself it may do what this token may
        about["orgs"][0]["roleInOrg"] = about["roleInOrg"] = token.scope
    return JSONResponse(about)


def _membership(identity: Identity, org: str, role: Role) -> dict[str, Any]:
    shown = {"type": "org", "id": org, "name": org, "fullname": org, "avatarUrl": "", "isEnterprise": False}
    return {**shown, "roleInOrg": _ROLES[role], "canPay": False}


def organization(request: Request) -> Response:
    """An organization's overview; clients run the kernels of a trusted publisher without a question."""
    org = param(request, "org")
    with service(request).store.read() as session:
        row = session.scalar(select(Org).where(Org.name == org))
        if row is None:
            raise RequestError(404, f"No organization {org!r} on this hub: its first token creates it.")
        trusted = row.trusted_publisher
    return JSONResponse({"name": org, "fullname": org, "avatarUrl": "", "trustedKernelPublisher": trusted})


def members(request: Request) -> Response:
    """An organization's users, for its members."""
    org = param(request, "org")
    authorize(request, Action.READ, RepoFacts(org, private=True))
    with service(request).store.read() as session:
        found = directory.list_members(session, org)
    return JSONResponse(
        [
            {"user": name, "fullname": name, "type": "user", "avatarUrl": "", "role": role}
            for name, role in found.items()
        ]
    )


def audit_log(request: Request) -> Response:
    """The log's entries, newest first: an organization's for its owners, all for operators."""
    org = _text(request.query_params.get("org"))
    if org is None:
        authorize(request, Action.MANAGE_HUB)
    else:
        authorize(request, Action.MANAGE_ORG, RepoFacts(org))
    query = request.query_params
    with service(request).store.read() as session:
        found = audit.events(
            session,
            org=org,
            actor=_text(query.get("actor")),
            action=_text(query.get("action")),
            before=_number(query.get("before")),
            limit=min(_number(query.get("limit")) or 100, _MOST_EVENTS),
        )
    return JSONResponse([asdict(event) | {"at": iso(event.at)} for event in found])


def _text(text: str | None) -> str | None:
    if text is not None and not text.isprintable():
        raise bad_request(f"{text!r} is no name.")
    return text


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise bad_request(f"{text!r} is not a number.")
    return int(text)
