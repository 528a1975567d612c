"""The one decision: may this identity do this to that repository? Pure.

1. What is public is read by everyone, whatever token comes with the request.
2. A token does nothing outside of its limits, and nothing above its scope.
3. Reading a private repository takes a member; reading a gated one a member or somebody who was let in.
4. Writers change what repositories hold and create them; owners delete, rename and configure them,
   and manage their organization's members, tokens and publishers.
5. An organization's own token is an owner, a trusted publisher a writer.
6. An operator configures and deletes anywhere, and reads everything; publishing in the name of an
   organization takes a role in it even then.
7. A refusal to write says the same whether the repository exists, is private, or does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .identity import Identity, Kind, Role, Scope


class Action(Enum):
    """What can be asked for; the value is how a sentence calls it."""

    READ = "read"
    WRITE = "write to"
    CREATE = "create a repository in"
    MANAGE = "delete, rename or configure repositories of"
    MANAGE_ORG = "manage"
    MANAGE_HUB = "manage this hub"


@dataclass(frozen=True)
class RepoFacts:
    """What the decision has to know of its object.

    `name` None: the organization itself, or a repository that is not told. `granted`: the identity's access
    request to the gated repository was accepted.
    """

    org: str
    name: str | None = None
    private: bool = False
    gated: bool = False
    granted: bool = False

    def __str__(self) -> str:
        return self.org if self.name is None else f"{self.org}/{self.name}"


class Cause(Enum):
    """What kind of no; the edge makes a status of it."""

    CREDENTIALS = "credentials"  # 401: nobody we know
    FORBIDDEN = "forbidden"  # 403: known, and not allowed
    HIDDEN = "hidden"  # 404: as if it did not exist
    GATED = "gated"  # 403 GatedRepo: ask for access


@dataclass(frozen=True)
class Allowed:
    """Yes."""


@dataclass(frozen=True)
class Refused:
    """No, with a sentence for the person who asked."""

    reason: str
    cause: Cause


Verdict = Allowed | Refused

_SCOPE = {
    Action.READ: Scope.READ,
    Action.WRITE: Scope.WRITE,
    Action.CREATE: Scope.WRITE,
    Action.MANAGE: Scope.WRITE,
    Action.MANAGE_ORG: Scope.ADMIN,
    Action.MANAGE_HUB: Scope.ADMIN,
}
_ROLE = {
    Action.READ: Role.READER,
    Action.WRITE: Role.WRITER,
    Action.CREATE: Role.WRITER,
    Action.MANAGE: Role.OWNER,
    Action.MANAGE_ORG: Role.OWNER,
}
_OPERATORS = frozenset({Action.READ, Action.MANAGE, Action.MANAGE_ORG, Action.MANAGE_HUB})
_ALLOWED = Allowed()


def may(identity: Identity, action: Action, facts: RepoFacts | None = None) -> Verdict:
    """Decide by the rules above. `facts` are left out for MANAGE_HUB alone."""
    if facts is None:
        return _hub(identity, action)
    if action is Action.READ:
        return _read(identity, facts)
    return _change(identity, action, facts)


def _read(identity: Identity, facts: RepoFacts) -> Verdict:
    if not facts.private and not facts.gated:
        return _ALLOWED
    inside = not identity.anonymous and identity.reaches(facts.org, facts.name)
    if inside and (_has_role(identity, Action.READ, facts.org) or _operates(identity, Action.READ)):
        return _ALLOWED
    if facts.private:
        return Refused(f"No repository {str(facts)!r} on this hub, or none that you may see.", Cause.HIDDEN)
    if inside and facts.granted:
        return _ALLOWED
    if identity.anonymous:
        return Refused(
            f"{facts} is gated: log in with a token of somebody who was given access.", Cause.GATED
        )
    return Refused(f"{facts} is gated: ask an owner of {facts.org!r} for access.", Cause.GATED)


def _change(identity: Identity, action: Action, facts: RepoFacts) -> Verdict:
    what = f"{action.value} {facts.org!r}"
    if identity.anonymous:
        return Refused(
            f"A request to {what} needs a token and {identity.unknown}: make one with "
            f"`khub registry token create --org {facts.org} --write` and set HF_TOKEN.",
            Cause.CREDENTIALS,
        )
    if not identity.reaches(facts.org, facts.name):
        return _forbidden(f"This token is limited to {identity.limit!r} and cannot {action.value} {facts}")
    if not (_operates(identity, action) or _has_role(identity, action, facts.org)):
        return _forbidden(_lacks_role(identity, action, facts.org))
    if identity.scope < _SCOPE[action]:
        return _forbidden(_lacks_scope(identity, action, facts.org))
    return _ALLOWED


def _hub(identity: Identity, action: Action) -> Verdict:
    if action is not Action.MANAGE_HUB:
        raise ValueError(f"{action} needs the facts of a repository or organization")
    if identity.anonymous:
        return Refused(
            f"A request to {action.value} needs an operator's token and {identity.unknown}.",
            Cause.CREDENTIALS,
        )
    if not identity.operator or identity.limit:
        return _forbidden(f"To {action.value} takes an operator and a token without limits")
    if identity.scope < Scope.ADMIN:
        return _forbidden(f"To {action.value} takes a token of scope admin: this one is for {identity.scope}")
    return _ALLOWED


def _has_role(identity: Identity, action: Action, org: str) -> bool:
    role = identity.roles.get(org)
    return role is not None and role >= _ROLE[action]


def _operates(identity: Identity, action: Action) -> bool:
    return identity.operator and identity.scope is Scope.ADMIN and action in _OPERATORS


def _lacks_role(identity: Identity, action: Action, org: str) -> str:
    role = identity.roles.get(org)
    needed = _ROLE[action]
    if identity.kind is Kind.USER:
        have = f"is {role} there" if role is not None else "is no member there"
        return (
            f"To {action.value} {org!r} takes the role {needed} and {identity.name!r} {have}: an owner gives it with "
            f"`khub registry member add --org {org} --user {identity.name} --role {needed}`"
        )
    if role is not None:
        return f"This token uploads for {org!r} and cannot {action.value} it"
    return f"This token belongs to {identity.name!r} and cannot {action.value} {org!r}"


def _lacks_scope(identity: Identity, action: Action, org: str) -> str:
    needed = _SCOPE[action]
    whose = f"{identity.name!r}" if identity.kind is Kind.USER else f"{org!r}"
    option = "--write" if needed is Scope.WRITE else f"--scope {needed}"
    purpose = "reading" if identity.scope is Scope.READ else "writing"
    return f"This token of {whose} is for {purpose}: make one with {option} to {action.value} {org!r}"


def _forbidden(reason: str) -> Refused:
    return Refused(f"{reason}.", Cause.FORBIDDEN)
