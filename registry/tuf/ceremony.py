"""Ceremonies: drafts of root and targets, which people sign with keys that the server never sees. Pure.

A draft is the next version, without signatures, in a file. It goes from one holder of a key to the next; each adds a
signature; when there are enough the registry takes it (`repository.apply`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from securesystemslib.signer import Signer, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from hub_loader.errors import UsageError
from hub_loader.trust.tuf_names import org_of

from .roles import (
    OFFLINE,
    Keys,
    check_threshold,
    delegate,
    lifetimes_of,
    next_version,
    publishers,
    undelegate,
)

Draft = Metadata[Root] | Metadata[Targets]


@dataclass(frozen=True)
class Offline:
    """What offline keys have signed: root, and targets."""

    root: Metadata[Root]
    targets: Metadata[Targets]


def parse_draft(data: bytes, origin: str) -> Draft:
    """Root or targets metadata. Raises UsageError."""
    try:
        found = Metadata[Root].from_bytes(data)
    except DeserializationError:
        raise UsageError(f"{origin} is no TUF metadata") from None
    if found.signed.type not in OFFLINE:
        raise UsageError(
            f"{origin} is {found.signed.type} metadata: what is signed by hand is root and targets"
        )
    return found


def to_bytes(draft: Draft) -> bytes:
    """The text of a draft, made to be read."""
    return JSONSerializer(compact=False).serialize(draft)


def sign_draft(draft: Draft, signer: Signer) -> None:
    """Add a signature."""
    draft.sign(signer, append=True)


def with_keys(
    before: Offline,
    role: str,
    add: Sequence[SSlibKey],
    remove: Sequence[str],
    threshold: int | None,
    at: datetime,
) -> Metadata[Root]:
    """The next root, in which `role` has other keys.

    Raises:
        UsageError: a key to be removed is not there, or the rest cannot meet the threshold.
    """
    draft = copy.deepcopy(before.root)
    next_version(draft, lifetimes_of(draft.signed).root, at)
    for key in add:
        draft.signed.add_key(key, role)
    for keyid in remove:
        if keyid not in draft.signed.roles[role].keyids:
            raise UsageError(f"{role} has no key {keyid[:12]}: `khub registry trust status` lists its keys")
        draft.signed.revoke_key(keyid, role)
    if threshold is not None:
        draft.signed.roles[role].threshold = threshold
    _check(role, len(draft.signed.roles[role].keyids), draft.signed.roles[role].threshold)
    return draft


def with_publishers(before: Offline, org: str, keys: Sequence[SSlibKey], at: datetime) -> Metadata[Targets]:
    """The next targets, in which `keys` and no others publish for `org`; nobody if there are none."""
    draft = copy.deepcopy(before.targets)
    next_version(draft, lifetimes_of(before.root.signed).targets, at)
    if keys:
        delegate(draft.signed, org, Keys(keys))
    else:
        undelegate(draft.signed, org)
    return draft


def renewed(before: Offline, role: str, at: datetime) -> Draft:
    """The next version of root or targets, with nothing changed but how long it is good."""
    draft = copy.deepcopy(before.root if role == Root.type else before.targets)
    lifetimes = lifetimes_of(before.root.signed)
    next_version(draft, lifetimes.root if role == Root.type else lifetimes.targets, at)
    return draft


def without_key(before: Offline, keyid: str, at: datetime) -> list[Draft]:
    """The drafts in which a stolen offline or publisher's key signs nothing any more.

    Raises:
        UsageError: nobody uses the key, or a role could not be signed without it.
    """
    drafts: list[Draft] = []
    root = copy.deepcopy(before.root)
    for role in OFFLINE:
        who = root.signed.roles[role]
        if keyid in who.keyids:
            _check(f"without it, {role}", len(who.keyids) - 1, who.threshold)
            root.signed.revoke_key(keyid, role)
            drafts = [root]
    if drafts:
        next_version(root, lifetimes_of(root.signed).root, at)
    targets = copy.deepcopy(before.targets)
    for org in orgs_of_key(targets.signed, keyid):
        who_may = publishers(targets.signed, org)
        assert who_may is not None
        rest = [key for key in who_may.keys if key.keyid != keyid]
        if rest:
            delegate(targets.signed, org, Keys(rest))
        else:
            undelegate(targets.signed, org)
    if targets.signed != before.targets.signed or keyid in before.root.signed.roles[Targets.type].keyids:
        next_version(targets, lifetimes_of(root.signed).targets, at)
        drafts.append(targets)
    if not drafts:
        raise UsageError(
            f"no role is signed by a key {keyid[:12]}: `khub registry trust status` lists the keys"
        )
    return drafts


def orgs_of_key(targets: Targets, keyid: str) -> list[str]:
    """The organizations that a key publishes for."""
    roles = (targets.delegations.roles if targets.delegations else None) or {}
    return [org for name, role in roles.items() if keyid in role.keyids and (org := org_of(name))]


def verdict(draft: Draft, before: Root | None, root: Root) -> str | None:
    """What a draft lacks to be accepted, in a sentence; None for nothing.

    `before` is the current root (None: there is none yet); `root` is the one that will hold with the draft.
    """
    try:
        payload = draft.signed_bytes
        if isinstance(draft.signed, Root):
            both = draft.signed.get_root_verification_result(before, payload, draft.signatures)
            missing = {"the new root": both.second.missing} | (
                {"the old root": both.first.missing} if before else {}
            )
        else:
            found = root.get_verification_result(Targets.type, payload, draft.signatures)
            missing = {"targets": found.missing}
    except (ValueError, RepositoryError) as error:
        return str(error)
    lacking = [f"{count} more by keys of {whose}" for whose, count in missing.items() if count]
    return f"it needs {' and '.join(lacking)}" if lacking else None


def after_drafts(before: Offline | None, by_role: Mapping[str, Draft]) -> Offline:
    """Root and targets as they are once the drafts are accepted. Raises UsageError: one is missing."""
    root = by_role.get(Root.type, before and before.root)
    targets = by_role.get(Targets.type, before and before.targets)
    if root is None or targets is None:
        raise UsageError("the first ceremony needs both root.json and targets.json")
    return Offline(cast(Metadata[Root], root), cast(Metadata[Targets], targets))


def check_drafts(by_role: Mapping[str, Draft], before: Offline | None, root: Root, at: datetime) -> None:
    """Raises UsageError for one that is not the next version, has expired or lacks signatures."""
    for role, draft in by_role.items():
        expected = 1
        if before is not None:
            expected += before.root.signed.version if role == Root.type else before.targets.signed.version
        if draft.signed.version != expected:
            raise UsageError(
                f"{role}.json is version {draft.signed.version} and {expected} is next: draft it again"
            )
        if draft.signed.is_expired(at):
            raise UsageError(f"{role}.json has expired: draft it again")
        if (lack := verdict(draft, None if before is None else before.root.signed, root)) is not None:
            raise UsageError(f"{role}.json: {lack}: khub registry trust sign {role}.json --key KEY")


def _check(role: str, keys: int, threshold: int) -> None:
    try:
        check_threshold(role, keys, threshold)
    except ValueError as error:
        raise UsageError(f"{error}: add a key in the same step, or pass --threshold") from None
