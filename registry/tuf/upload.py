"""What a publisher may upload: the next version of their organization's role, signed as delegated. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.api.serialization import DeserializationError

from hub_loader.trust.tuf_names import Target, parse_target, role_of

from ..errors import RequestError, bad_request, forbidden

MAX_BYTES = 4_000_000  # python-tuf's clients read up to 5,000,000
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_MAX_REASON = 500


@dataclass(frozen=True)
class Claim:
    """What a target says: at `commit`, index.json of this version has this SHA-256 and this length."""

    target: Target
    sha256: str
    length: int
    commit: str
    yanked: str | None


def check_upload(
    delegator: Targets, before: Targets | None, org: str, data: bytes, at: datetime, *, carried: bool = False
) -> Metadata[Targets]:
    """The uploaded metadata, if it may follow `before`; `carried` from another hub it may be any later version.

    Raises:
        RequestError: 400 it is malformed, 403 it is not signed as delegated, 412 another version came first, 413 as
            `check_size`.
    """
    check_size(data)
    role, metadata = role_of(org), parse_role(org, data)
    signed = metadata.signed
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except ValueError:
        raise forbidden(
            f"{org!r} has no publishers' keys on this hub: its operator delegates with "
            f"`khub registry trust delegate --org {org} --keys KEY.pub`."
        ) from None
    except UnsignedMetadataError:
        raise forbidden(f"{role} is not signed by a key that this hub delegates {org!r} to.") from None
    except RepositoryError as error:  # what is signed has no canonical form
        raise bad_request(f"{role}: {error}.") from None
    expected = 1 if before is None else before.version + 1
    if carried and signed.version < expected:
        raise RequestError(
            412,
            f"{role} is at version {expected - 1} here and at {signed.version} in the archive: publish here, or carry "
            "a newer archive.",
        )
    if not carried and signed.version != expected:
        raise RequestError(
            412,
            f"A version of {role} has come in between: this one is {signed.version}, {expected} is next. Build on "
            "the current one and try again.",
        )
    if signed.is_expired(at):
        raise bad_request(f"{role} has expired already: sign it for longer, and check the clock.")
    if signed.delegations is not None:
        raise bad_request(f"{role} cannot delegate any further.")
    for path, file in signed.targets.items():
        read_claim(org, path, file)
    return metadata


def check_size(data: bytes) -> None:
    """Raises RequestError 413 for what clients do not read; blanks around it count, which no signature covers."""
    if len(data) > MAX_BYTES:
        raise RequestError(413, f"Metadata of more than {MAX_BYTES} bytes is read by no client.")


def parse_role(org: str, data: bytes) -> Metadata[Targets]:
    """What somebody has uploaded as an organization's role, not verified. Raises RequestError 400."""
    try:
        metadata = Metadata[Targets].from_bytes(data)
    except (DeserializationError, RecursionError):
        raise bad_request(f"This is no TUF metadata of {role_of(org)}.") from None
    if not isinstance(metadata.signed, Targets):
        raise bad_request(f"{role_of(org)} has to be targets metadata.")
    return metadata


def touched(before: Targets | None, after: Targets, org: str) -> set[str]:
    """The names of the repositories of which `after` says something else than `before`. Raises RequestError 400."""
    old = {} if before is None else before.targets
    paths = {path for path in {*old, *after.targets} if old.get(path) != after.targets.get(path)}
    return {_target(org, path).name for path in paths}


def changed(before: Targets | None, after: Targets, org: str) -> list[Claim]:
    """The claims of `after` that `before` does not make about the same bytes; yanking is no new claim."""
    old = {} if before is None else {p: read_claim(org, p, f) for p, f in before.targets.items()}
    found = [read_claim(org, path, file) for path, file in after.targets.items()]
    return [claim for claim in found if not _same(old.get(str(claim.target)), claim)]


def _same(old: Claim | None, new: Claim) -> bool:
    return old is not None and (old.sha256, old.length, old.commit) == (new.sha256, new.length, new.commit)


def read_claim(org: str, path: str, file: TargetFile) -> Claim:
    """A target of an organization. Raises RequestError 400."""
    target = _target(org, path)
    sha256 = file.hashes.get("sha256", "")
    if set(file.hashes) != {"sha256"} or not _SHA256.fullmatch(sha256):
        raise bad_request(f"The target {path!r} needs a sha256 and no other hash.")
    custom: Any = file.custom if file.custom is not None else {}
    if not isinstance(custom, dict) or not set(custom) <= {"commit", "yanked"}:
        raise bad_request(f"The target {path!r} may have `commit` and `yanked` and nothing else.")
    commit, yanked = custom.get("commit"), custom.get("yanked")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise bad_request(f"The target {path!r} has to name the commit that it is at, in 40 hex digits.")
    if yanked is not None and not (isinstance(yanked, str) and 0 < len(yanked) <= _MAX_REASON):
        raise bad_request(f"The reason why {path!r} is yanked has to be 1 to {_MAX_REASON} characters.")
    return Claim(target, sha256, file.length, commit, yanked)


def _target(org: str, path: str) -> Target:
    target = parse_target(path)
    if target is None or target.org != org:
        raise bad_request(f"The target {path!r} is not {org}/<name>/v<N>/index.json.")
    return target
