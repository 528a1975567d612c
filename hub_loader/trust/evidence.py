"""What is known about a version of a kernel when it is decided whether it may run, and the decision. Pure data."""

from __future__ import annotations

from collections.abc import Mapping

from ..record import NOTHING, Record


class PublicKey(Record):
    """An ed25519 key: its 32 bytes, and whose it is in words. `keys.py` reads, writes and uses it."""

    raw: bytes
    comment: str = ""


class TrustedKey(Record):
    """A key that may sign for a namespace: by the user's trust file, or by the hub's TUF delegation.

    `id` is the SHA-256 of the key's 32 bytes in hex, `where` who says so, for messages. One that is `revoked` may
    not sign any more, and nothing that it has signed is loaded, whatever else is allowed.
    """

    id: str
    comment: str = ""
    where: str = "the trust file"
    revoked: bool = False


class Proof(Record):
    """A signature that holds: who signed which index.json as which version of which repository, and when.

    `signed` counts in seconds since 1970 by the signer's clock; versions signed again have a later one. `yanked`
    is the publisher's reason why this version is not to be used any more, None for one in use.
    """

    index_sha256: str
    repo_id: str
    version: int
    signed: int
    key: PublicKey
    key_id: str
    yanked: str | None = None


class BundleProof(Record):
    """A sigstore bundle that holds: for which metadata.json, by whom, and under which trusted root (a file, or "")."""

    metadata_sha256: str
    identity: str
    issuer: str
    root: str


class SeenRef(Record):
    """What a branch showed when it was last loaded here: the signed time, the digest of index.json, the key."""

    signed: int
    index_sha256: str
    key_id: str


class SeenYank(Record):
    """That the publisher took an index.json back: when that was signed, and why."""

    signed: int
    reason: str


class Seen(Record):
    """What was proven of a repository before: refs by name, the highest version, yanked indexes by digest."""

    highest: int | None = None
    refs: Mapping[str, SeenRef] = NOTHING
    yanked: Mapping[str, SeenYank] = NOTHING


class TufTarget(Record):
    """index.json of a version as the hub's TUF metadata has it, verified from the root that the user gave.

    `key_ids` are those of the delegation that signed it, `as_of` when the hub last said that this is its newest
    state (seconds since 1970), `yanked` the publisher's reason not to use it any more.
    """

    path: str
    sha256: str
    length: int
    key_ids: frozenset[str]
    as_of: float
    yanked: str | None = None


class Evidence(Record):
    """All that `judge` decides on.

    Args:
        repo_id: the repository that answered, after every redirect.
        ref: the branch or tag that was asked for, or the newest is; None for a commit asked for by its hash.
        newest: whether the newest version was asked for, whichever that is.
        index_sha256: of the index.json at hand; None for a repository without one.
        index_size: its bytes.
        proof: what its envelope proves; None where it has no envelope. A wrong one never gets here: `prove` raises.
        publisher_keys: who may sign for the repository's namespace on this hub.
        seen: what was proven of it before.
        hub_vouches: the hub's own word about the publisher; None where it was not asked, or nobody could be.
        has_root: whether the user gave a TUF root for this hub: then `tuf` must be there.
        tuf: what the hub's TUF metadata says of it.
        now: seconds since 1970.
    """

    repo_id: str
    ref: str | None
    index_sha256: str | None
    now: float
    index_size: int = 0
    proof: Proof | None = None
    publisher_keys: tuple[TrustedKey, ...] = ()
    seen: Seen = Seen()
    hub_vouches: bool | None = None
    has_root: bool = False
    tuf: TufTarget | None = None
    newest: bool = False


class Verdict(Record):
    """Whether it may run, and why in a sentence.

    `signer` is the trusted key that signed it. `is_final`: refused whatever the caller allows. `is_open`: refused
    for want of the hub's word about the publisher, which may be asked for.
    """

    allowed: bool
    reason: str
    signer: TrustedKey | None = None
    is_final: bool = False
    is_open: bool = False
