"""What an operator sees of a role."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tuf.api.metadata import Metadata, Targets

from ..models import TufMetadata
from . import roles
from .ceremony import Offline


@dataclass(frozen=True)
class RoleStatus:
    """A role's current version, until when it is good, and which of its keys there are and sign."""

    role: str
    version: int
    expires: datetime
    keys: tuple[str, ...]
    threshold: int
    problem: str | None


def status_of(offline: Offline, row: TufMetadata) -> RoleStatus:
    """The status of a role's current version."""
    metadata = Metadata[Targets].from_bytes(row.data)
    delegator = offline.root.signed if row.role in offline.root.signed.roles else offline.targets.signed
    at, signed = roles.now(), metadata.signed
    try:
        role = delegator.get_delegated_role(row.role)
        result = delegator.get_verification_result(row.role, metadata.signed_bytes, metadata.signatures)
    except ValueError:
        return RoleStatus(row.role, row.version, signed.expires, (), 0, "nobody may sign it any more")
    problem = None if result else "the keys that signed it may not any more"
    problem = "it has expired" if signed.is_expired(at) else problem
    return RoleStatus(row.role, row.version, signed.expires, tuple(role.keyids), role.threshold, problem)
