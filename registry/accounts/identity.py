"""Who a request comes from, as far as a decision needs it. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import MappingProxyType


class Role(IntEnum):
    """What a member is in an organization; each may do what those before it may."""

    READER = 1
    WRITER = 2
    OWNER = 3

    def __str__(self) -> str:
        return self.name.lower()


class Scope(IntEnum):
    """What a token is for; each allows what those before it allow."""

    READ = 1
    WRITE = 2
    ADMIN = 3

    def __str__(self) -> str:
        return self.name.lower()


class Kind(Enum):
    """What stands behind a request."""

    ANONYMOUS = "anonymous"
    USER = "user"
    ORG = "org"  # an organization's own token: a service that speaks for it
    PUBLISHER = "publisher"  # a CI run that proved itself with an OIDC token

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Identity:
    """A user or service, seen through the token that it sent.

    `roles` maps an organization to the role there. `only_org` and `only_repo` (a name in `only_org`) are
    what the token is limited to. `operator` runs the hub. `unknown` says why a request is anonymous.
    """

    kind: Kind
    name: str = ""
    scope: Scope = Scope.READ
    roles: Mapping[str, Role] = field(default_factory=lambda: MappingProxyType({}))
    only_org: str | None = None
    only_repo: str | None = None
    operator: bool = False
    token_id: int | None = None
    user_id: int | None = None
    label: str = ""
    unknown: str = "none was sent"

    @property
    def anonymous(self) -> bool:
        """Whether nobody is known to stand behind the request."""
        return self.kind is Kind.ANONYMOUS

    @property
    def limit(self) -> str:
        """`org` or `org/name` that the token is limited to; empty if it is not."""
        return "/".join(part for part in (self.only_org, self.only_repo) if part)

    def reaches(self, org: str, name: str | None) -> bool:
        """Whether the token's limits include a repository; `name` None asks for the organization itself."""
        return self.only_org in (None, org) and self.only_repo in (None, name)


ANONYMOUS = Identity(Kind.ANONYMOUS)
