"""The TUF metadata in the registry's database.

Every change is one transaction that begins by taking a lock, so that several server processes queue, and in which
all that follows from a change is signed: a publisher's new role, the snapshot that names it, the timestamp that names
the snapshot. A crash leaves the state before or the state after. What a target points to is on the hub before: its
commit was acknowledged, and the transaction looks it up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from hub_loader.errors import UsageError
from hub_loader.trust.tuf_names import role_of

from ..db import Database
from ..errors import RequestError, entry_not_found
from ..locks import lock_trust
from ..models import TufMetadata
from . import roles
from .ceremony import Draft, Offline, after_drafts, check_drafts, verdict
from .keys import OnlineKeys
from .status import RoleStatus, status_of
from .upload import Claim, changed, check_upload, parse_role, touched

logger = logging.getLogger(__name__)
KEEP = timedelta(days=1)  # superseded metadata: readers may be in the middle of an older snapshot
Exists = Callable[[Session, Claim], str | None]


class TufRepository:
    """The metadata of one registry. Safe to share between threads and processes."""

    def __init__(self, database: Database, data: Path) -> None:
        self._database = database
        self.keys = OnlineKeys(data)

    # -- reading

    def file(self, role: str, version: int | None) -> bytes:
        """Metadata by role and version; None is the current one. Raises RequestError 404."""
        with self._database.read() as session:
            row = _current(session, role) if version is None else session.get(TufMetadata, (role, version))
            if row is None:
                raise entry_not_found(f"There is no {role!r} metadata of this version here.")
            return row.data

    def bundle(self, org: str | None, since: int) -> dict[str, str]:
        """All that a reader who trusts root `since` needs for `org`, by file name, of one moment."""
        with self._database.read() as session:
            found = session.scalars(
                select(TufMetadata).where(TufMetadata.role == Root.type, TufMetadata.version > since)
            ).all()
            named = [(f"{row.version}.root", row) for row in found]
            for role in (Targets.type, Snapshot.type, *([role_of(org)] if org else [])):
                if (row := _current(session, role)) is not None:
                    named.append((f"{row.version}.{role}", row))
            if (row := _current(session, Timestamp.type)) is None:
                raise no_tuf()
            named.append((Timestamp.type, row))
            return {f"{name}.json": row.data.decode() for name, row in named}

    def offline(self) -> Offline | None:
        """The current root and targets; None before the first ceremony."""
        with self._database.read() as session:
            return _offline(session)

    def status(self) -> list[RoleStatus]:
        """Every role; empty before the first ceremony."""
        with self._database.read() as session:
            offline = _offline(session)
            if offline is None:
                return []
            found = session.scalars(
                select(TufMetadata).where(TufMetadata.superseded_at.is_(None)).order_by(TufMetadata.role)
            ).all()
            return [status_of(offline, row) for row in found]

    def root(self) -> bytes:
        """The current root, as readers are given it. Raises RequestError 404."""
        return self.file(Root.type, None)

    # -- changing

    def apply(self, drafts: Iterable[Draft]) -> list[str]:
        """Accept what offline keys have signed; returns sentences about what it does to publishers.

        Raises:
            UsageError: a draft is not the next version, or lacks signatures, or leaves a role without.
        """
        by_role = {draft.signed.type: draft for draft in drafts}
        with self._locked() as session:
            before = _offline(session)
            after = after_drafts(before, by_role)
            check_drafts(by_role, before, after.root.signed, roles.now())
            if (lack := verdict(after.targets, None, after.root.signed)) is not None:
                raise UsageError(
                    f"targets version {after.targets.signed.version}: {lack}: sign targets.json again too"
                )
            for role, draft in by_role.items():
                _insert(session, role, draft)
            self._sign(session, {Targets.type} & set(by_role), force=True)
            return _orphaned(session, after.targets.signed)

    def publish(self, org: str, data: bytes, exists: Exists) -> int:
        """Accept a publisher's next version of `org`; returns its number. `exists` says what a claim lacks.

        Raises:
            RequestError: as `check_upload`; 404 without a TUF repository; 409 a target is not on the hub.
        """
        version = self._accept(org, data, exists, carried=False)
        assert version is not None
        return version

    def take_over(self, org: str, data: bytes, exists: Exists) -> int | None:
        """As `publish`, what was published on another hub: any later version; None if it is here already."""
        return self._accept(org, data, exists, carried=True)

    def _accept(self, org: str, data: bytes, exists: Exists, *, carried: bool) -> int | None:
        role = role_of(org)
        with self._locked() as session:
            offline = _offline(session)
            if offline is None:
                raise no_tuf()
            row = _current(session, role)
            if carried and row is not None and row.data == data:
                return None
            before = None if row is None else Metadata[Targets].from_bytes(row.data).signed
            at = roles.now()
            metadata = check_upload(offline.targets.signed, before, org, data, at, carried=carried)
            for claim in changed(before, metadata.signed, org):
                if (lack := exists(session, claim)) is not None:
                    raise RequestError(409, f"{claim.target} cannot be a target: {lack}.", code="Conflict")
            _insert(session, role, metadata, data)
            self._sign(session, {role}, force=True)
            return metadata.signed.version

    def touched(self, org: str, data: bytes) -> set[str]:
        """The repositories that an upload changes, if it is the version after one that is here.

        Raises RequestError: 400 it is malformed, 412 it follows no version that is here.
        """
        after, role = parse_role(org, data).signed, role_of(org)
        with self._database.read() as session:
            row = session.get(TufMetadata, (role, after.version - 1))
        if row is None and after.version != 1:
            raise RequestError(412, f"There is no version {after.version - 1} of {role} here to follow.")
        return touched(None if row is None else Metadata[Targets].from_bytes(row.data).signed, after, org)

    def refresh(self, *, force: bool = False) -> bool:
        """Sign snapshot and timestamp again where it is time to; returns whether it was."""
        with self._database.read() as session:
            if not force and not self._due(session):
                return False
        with self._locked() as session:
            return self._sign(session, set(), force=force)

    @contextmanager
    def _locked(self) -> Iterator[Session]:
        with self._database.write() as session:
            lock_trust(session)
            yield session

    def _due(self, session: Session) -> bool:
        offline = _offline(session)
        return offline is not None and any(
            self._role_due(session, offline.root.signed, r) for r in roles.ONLINE
        )

    def _role_due(self, session: Session, root: Root, role: str) -> bool:
        """Whether too little is left of a role, or its key has been replaced."""
        row = _current(session, role)
        if row is None:
            return True
        metadata = Metadata[Snapshot].from_bytes(row.data)
        if not root.get_verification_result(role, metadata.signed_bytes, metadata.signatures):
            return True
        return roles.is_due(metadata.signed.expires, getattr(roles.lifetimes_of(root), role), roles.now())

    def _sign(self, session: Session, changes: set[str], *, force: bool) -> bool:
        """Sign the snapshot of `changes` where there are any or it is due, and the timestamp of it."""
        offline = _offline(session)
        if offline is None:
            raise no_tuf()
        root, at = offline.root.signed, roles.now()
        lifetimes = roles.lifetimes_of(root)
        again = self._role_due(session, root, Snapshot.type)
        if changes or force or again:
            files = {role: (row.version, row.data) for role in changes if (row := _current(session, role))}
            snapshot = roles.sign_snapshot(
                _signed(session, Snapshot.type),
                files,
                self._signer(root, Snapshot.type),
                lifetimes.snapshot,
                at,
            )
            _insert(session, Snapshot.type, snapshot)
        elif not self._role_due(session, root, Timestamp.type):
            return False
        row = _current(session, Snapshot.type)
        assert row is not None
        signer = self._signer(root, Timestamp.type)
        before = _signed(session, Timestamp.type)
        timestamp = roles.sign_timestamp(before, (row.version, row.data), signer, lifetimes.timestamp, at)
        _insert(session, Timestamp.type, timestamp)
        old = TufMetadata.superseded_at < _naive(at - KEEP)
        session.execute(delete(TufMetadata).where(TufMetadata.role != Root.type, old))
        return True

    def _signer(self, root: Root, role: str) -> Any:
        return self.keys.signer(role, root.roles[role].keyids)


def no_tuf() -> RequestError:
    """404: the hub has no TUF repository."""
    return entry_not_found(
        "This hub is no TUF repository: its operator begins with `khub registry trust init`."
    )


def _orphaned(session: Session, targets: Targets) -> list[str]:
    """What readers will refuse from now on, until it is signed again."""
    said = []
    for role in (targets.delegations.roles if targets.delegations else None) or {}:
        row = _current(session, role)
        if row is None:
            continue
        metadata = Metadata[Targets].from_bytes(row.data)
        if not targets.get_verification_result(role, metadata.signed_bytes, metadata.signatures):
            org = role.removeprefix("org.")
            said.append(
                f"{org}: no key that signed its version {row.version} may do so any more; its kernels are refused "
                f"until a publisher runs `khub resign {org} --sign-key KEY`"
            )
    return said


def _current(session: Session, role: str) -> TufMetadata | None:
    return session.scalars(
        select(TufMetadata).where(TufMetadata.role == role, TufMetadata.superseded_at.is_(None))
    ).first()


def _signed(session: Session, role: str) -> Any:
    row = _current(session, role)
    return None if row is None else Metadata[Snapshot].from_bytes(row.data).signed


def _offline(session: Session) -> Offline | None:
    root, targets = _current(session, Root.type), _current(session, Targets.type)
    if root is None or targets is None:
        return None
    return Offline(Metadata[Root].from_bytes(root.data), Metadata[Targets].from_bytes(targets.data))


def _insert(session: Session, role: str, metadata: Metadata[Any], data: bytes | None = None) -> None:
    at = _naive(roles.now())
    session.execute(
        update(TufMetadata)
        .where(TufMetadata.role == role, TufMetadata.superseded_at.is_(None))
        .values(superseded_at=at)
    )
    session.add(
        TufMetadata(
            role=role,
            version=metadata.signed.version,
            data=metadata.to_bytes() if data is None else data,
            expires=_naive(metadata.signed.expires),
            created_at=at,
        )
    )
    session.flush()


def _naive(at: datetime) -> datetime:
    return at.astimezone(timezone.utc).replace(tzinfo=None)
