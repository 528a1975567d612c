"""TUF's roles as this registry uses them. Pure: metadata in, the next metadata out.

root       k of n offline keys; names the keys of the other three. An operator's ceremony.
targets    offline keys; delegates each organization's targets to its publishers' keys.
org.<org>  publishers' keys; the SHA-256 and length of index.json of each version.
snapshot   the server's key; which version of targets and of each org.<org> is the current one.
timestamp  the server's key; which snapshot is the current one, for a day.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from securesystemslib.signer import Signer, SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from hub_loader.trust.tuf_names import paths_of, role_of

OFFLINE = (Root.type, Targets.type)
ONLINE = (Snapshot.type, Timestamp.type)
_LIFETIMES = "x-khub-lifetimes"  # a field of root: TUF's readers pass over fields that they do not know


@dataclass(frozen=True)
class Lifetimes:
    """Seconds for which each role's metadata is good; the root's are signed and hold for what the server signs."""

    root: int = 365 * 86400
    targets: int = 365 * 86400
    snapshot: int = 7 * 86400
    timestamp: int = 86400


@dataclass(frozen=True)
class Keys:
    """Who signs a role: `threshold` of these public keys."""

    keys: Sequence[SSlibKey]
    threshold: int = 1


def now() -> datetime:
    """This second; TUF knows no fractions."""
    return datetime.now(timezone.utc).replace(microsecond=0)


def first_root(roles: Mapping[str, Keys], lifetimes: Lifetimes, at: datetime) -> Metadata[Root]:
    """Version 1 of root, unsigned. `roles` has all four. Raises ValueError: a threshold cannot be met."""
    for name, who in roles.items():
        check_threshold(name, len({key.keyid for key in who.keys}), who.threshold)
    root = Root(
        version=1,
        expires=at + timedelta(seconds=lifetimes.root),
        keys={key.keyid: key for who in roles.values() for key in who.keys},
        roles={name: Role([key.keyid for key in who.keys], who.threshold) for name, who in roles.items()},
        consistent_snapshot=True,
        unrecognized_fields={_LIFETIMES: dict(vars(lifetimes))},
    )
    return Metadata(root)


def check_threshold(name: str, keys: int, threshold: int) -> None:
    """Raise ValueError unless `threshold` of `keys` can sign."""
    if not 1 <= threshold <= keys:
        raise ValueError(f"{name}: a threshold of {threshold} cannot be met by {keys} keys")


def first_targets(lifetimes: Lifetimes, at: datetime) -> Metadata[Targets]:
    """Version 1 of targets, unsigned: nobody is delegated to."""
    expires = at + timedelta(seconds=lifetimes.targets)
    return Metadata(Targets(version=1, expires=expires, delegations=Delegations({}, {})))


def lifetimes_of(root: Root) -> Lifetimes:
    """What a root says; the defaults for what it does not say."""
    said = root.unrecognized_fields.get(_LIFETIMES, {})
    return Lifetimes(**{name: int(value) for name, value in said.items() if name in vars(Lifetimes())})


def next_version(signed: Metadata[Root] | Metadata[Targets], lifetime: int, at: datetime) -> None:
    """Make `signed` the unsigned version that follows it."""
    signed.signatures.clear()
    signed.signed.version += 1
    signed.signed.expires = at + timedelta(seconds=lifetime)


def delegate(targets: Targets, org: str, who: Keys) -> None:
    """Let `who` and nobody else publish for `org`. Raises ValueError: the threshold cannot be met."""
    role = role_of(org)
    check_threshold(role, len({key.keyid for key in who.keys}), who.threshold)
    undelegate(targets, org)
    assert targets.delegations is not None and targets.delegations.roles is not None
    targets.delegations.roles[role] = DelegatedRole(role, [], who.threshold, True, [paths_of(org)])
    for key in who.keys:
        targets.add_key(key, role)


def undelegate(targets: Targets, org: str) -> None:
    """Let nobody publish for `org`."""
    if targets.delegations is None:
        targets.delegations = Delegations({}, {})
    assert targets.delegations.roles is not None  # no succinct roles are made here
    role = targets.delegations.roles.get(role_of(org))
    if role is not None:
        for keyid in list(role.keyids):
            targets.revoke_key(keyid, role.name)
        del targets.delegations.roles[role.name]


def publishers(targets: Targets, org: str) -> Keys | None:
    """Who may publish for `org`; None for nobody."""
    roles = targets.delegations.roles if targets.delegations else None
    role = (roles or {}).get(role_of(org))
    if role is None or targets.delegations is None:
        return None
    keys = [targets.delegations.keys[keyid] for keyid in role.keyids]
    return Keys([key for key in keys if isinstance(key, SSlibKey)], role.threshold)


def sign_snapshot(
    before: Snapshot | None,
    files: Mapping[str, tuple[int, bytes]],
    signer: Signer,
    lifetime: int,
    at: datetime,
) -> Metadata[Snapshot]:
    """The snapshot after `before` in which each role of `files` has this version and these bytes."""
    meta = dict(copy.deepcopy(before.meta)) if before else {}
    for role, (version, data) in files.items():
        meta[f"{role}.json"] = MetaFile.from_data(version, data, ["sha256"])
    version = before.version + 1 if before else 1
    snapshot = Metadata(Snapshot(version=version, expires=at + timedelta(seconds=lifetime), meta=meta))
    snapshot.sign(signer)
    return snapshot


def sign_timestamp(
    before: Timestamp | None, snapshot: tuple[int, bytes], signer: Signer, lifetime: int, at: datetime
) -> Metadata[Timestamp]:
    """The timestamp after `before`, of a snapshot of this version and these bytes."""
    timestamp = Metadata(
        Timestamp(
            version=before.version + 1 if before else 1,
            expires=at + timedelta(seconds=lifetime),
            snapshot_meta=MetaFile.from_data(*snapshot, ["sha256"]),
        )
    )
    timestamp.sign(signer)
    return timestamp


def is_due(expires: datetime, lifetime: int, at: datetime) -> bool:
    """Whether less than half of a lifetime is left, so that it is time to sign again."""
    return expires - at < timedelta(seconds=lifetime / 2)
