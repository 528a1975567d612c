"""The gate of a load: gathers what is known of a version, has it judged, and remembers what was proven.

Everything here is about one version of one hub; the decision itself is `judge`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Config
from ..errors import DownloadError, MissingExtraError, OfflineError, PolicyError, SignatureError
from ..hub import Hub
from ..manifest import parse_index, sha256_hex
from ..policy import Policy
from ..record import Record
from ..store import Store
from .dsse import ENVELOPE_NAME, parse_envelope
from .evidence import Evidence, Proof, TufTarget, Verdict
from .judge import after, allowing, judge, prove
from .seen import SeenRecord, read_record, record_path, remember
from .statement import read_statement
from .trusted import TrustFile, read_trust
from .tuf_client import root_of, target

if TYPE_CHECKING:
    from ..pin import Version

logger = logging.getLogger("hub_loader")


class Gathered(Record):
    """The evidence on a version, the record it was taken from, and proofs that are not in it yet."""

    evidence: Evidence
    record: SeenRecord
    new: Mapping[str, Proof]


def admit(config: Config, policy: Policy, version: Version, *, fresh: bool = False) -> Verdict:
    """The verdict that allows a version, of which no code has been fetched yet.

    Raises:
        PolicyError: nobody who is trusted here has signed it, and the caller does not allow it.
        SignatureError: its signature is wrong, revoked, for something else, or older than what was seen; or the user
            gave a TUF root for the hub, whose metadata does not list it or breaks a rule.
        MissingExtraError: it has a signature that was not checked yet, and the library is not installed.
        DownloadError, OfflineError: the hub's TUF metadata is needed and cannot be had.
    """
    trust = read_trust()
    found, verdict = _judged(config, policy, version, trust, fresh)
    if not verdict.allowed and version.envelope is None and version.index is not None:
        late = _late_envelope(config, version)
        if late is not None:
            found, verdict = _judged(config, policy, replace(version, envelope=late), trust, fresh)
    seen = after(found.record.seen, found.evidence)
    if found.new or seen != found.record.seen:
        remember(_path(config, trust, version), SeenRecord(seen, found.new))
    if not verdict.allowed:
        raise (SignatureError if verdict.is_final else PolicyError)(verdict.reason)
    # Offline nobody says whether there is something newer, or a yank: how old it is, is all there is to say.
    level = logging.INFO if config.offline else logging.DEBUG
    logger.log(level, "%s at %s: %s", version.repo_id, version.commit[:12], verdict.reason)
    return verdict


def check_signer(config: Config, version: Version, signer: str | None, origin: str) -> None:
    """Hold a version that a lock pins to the byte against the signer that the lock file `origin` names.

    The curve is not computed again: the digests in the lock are those of what was proven when it was written. So a
    locked load needs no trusted key and no library, and a revoked key or another signature stops it all the same.

    Raises:
        SignatureError: another key has signed it, or none, or something else was signed, or the key is revoked.
    """
    if signer is None:
        return
    envelope = version.envelope if version.envelope is not None else _late_envelope(config, version)
    name = f"{ENVELOPE_NAME} of {version.repo_id} at {version.commit[:12]}"
    if envelope is None:
        raise SignatureError(f"{name} is missing, and {origin} has a signer: run `khub sync` while online")
    proof = read_statement(parse_envelope(envelope, origin=name), origin=name)
    if proof.key_id != signer:
        raise SignatureError(
            f"{name} is of the key {proof.key_id[:16]}, {origin} wants {signer[:16]}: do not use it; if the publisher "
            "has a new key, run `khub lock`"
        )
    if (proof.index_sha256, proof.repo_id) != (sha256_hex(version.index or b""), version.repo_id):
        raise SignatureError(f"{name} signs something else than is there: do not use it")
    trust = read_trust()
    if any(key.id == signer and key.revoked for key in trust.keys):  # from whichever hub it came
        raise SignatureError(
            f"{version.repo_id}: {origin} has the signer {signer[:16]}, which {trust.path} has revoked"
        )
    if proof.yanked is not None:
        logger.warning("%s: the publisher has taken it back: %s", version.repo_id, proof.yanked)


def look(config: Config, version: Version) -> Verdict:
    """What `admit` would say where the caller allows nothing, as a sentence instead of an error; keeps nothing."""
    identities = read_trust().identities_for(config.endpoint, version.repo_id)
    if version.index is None and identities:
        names = ", ".join(entry.identity for entry in identities)
        return Verdict(
            False,
            f"{version.repo_id}: a variant's sigstore bundle has to be of {names}: asked when it is taken",
        )
    try:
        return _judged(config, Policy(hub_word=config.is_public), version, read_trust(), False)[1]
    except (SignatureError, MissingExtraError) as error:
        return Verdict(False, str(error), is_final=True)


def admit_source(config: Config, policy: Policy, version: Version) -> None:
    """As `admit`, for published source that no variant was built from: no signature covers it. Raises PolicyError."""
    evidence = Evidence(version.repo_id, version.ref, None, time.time())
    verdict = judge(policy, evidence)
    if verdict.is_open:
        vouched = _hub_vouches(config, version.repo_id, False)
        verdict = judge(policy, replace(evidence, hub_vouches=vouched))
    if not verdict.allowed:
        raise PolicyError(
            f"{version.repo_id}: no signature covers the source it publishes: read it, then allow it to be built "
            f"with {allowing(version.repo_id)}"
        )


def _judged(
    config: Config, policy: Policy, version: Version, trust: TrustFile, fresh: bool
) -> tuple[Gathered, Verdict]:
    found = _gather(config, version, trust, fresh)
    verdict = judge(policy, found.evidence)
    if verdict.is_open:
        vouched = _hub_vouches(config, version.repo_id, fresh)
        verdict = judge(policy, replace(found.evidence, hub_vouches=vouched))
    return found, verdict


def _gather(config: Config, version: Version, trust: TrustFile, fresh: bool) -> Gathered:
    record = read_record(_path(config, trust, version))
    proof, new = None, {}
    if version.envelope is not None:
        digest = sha256_hex(version.envelope)
        proof = record.proofs.get(digest)
        if proof is None:
            origin = f"{ENVELOPE_NAME} of {version.repo_id} at {version.commit[:12]}"
            proof = new[digest] = prove(version.envelope, origin=origin)
    has_root = root_of(config.endpoint) is not None
    evidence = Evidence(
        repo_id=version.repo_id,
        ref=version.ref,
        newest=version.newest,
        index_sha256=None if version.index is None else sha256_hex(version.index),
        index_size=len(version.index or b""),
        proof=proof,
        publisher_keys=trust.keys_for(config.endpoint, version.repo_id),
        seen=record.seen,
        has_root=has_root,
        tuf=_listed(config, version, fresh) if has_root else None,
        now=time.time(),
    )
    return Gathered(evidence, record, new)


def _listed(config: Config, version: Version, fresh: bool) -> TufTarget | None:
    """What the hub's TUF metadata says of the version that index.json states. Raises as `tuf_client.target`."""
    if version.index is None:
        return None
    number = parse_index(version.index, origin=f"index.json of {version.repo_id}").version
    return target(config, version.repo_id, number, fresh=fresh)


def _late_envelope(config: Config, version: Version) -> bytes | None:
    """The envelope of a version whose index lay in the cache without one, asked for before it is refused for that."""
    if config.offline:
        return None
    data = Hub(config).envelope(version.repo_id, version.commit)
    if data is not None:
        Store(config.cache).remember_index(
            config.endpoint, version.repo_id, version.commit, data, ENVELOPE_NAME
        )
    return data


def _hub_vouches(config: Config, repo_id: str, fresh: bool) -> bool | None:
    """Whether the hub vouches for the publisher: as remembered, else one request; None where nobody can be asked."""
    org, store = repo_id.partition("/")[0], Store(config.cache)
    known = store.publisher(config.endpoint, org)
    if not fresh and known is not None and 0 <= time.time() - known[1] < config.refresh:
        return known[0]
    try:
        if config.offline:
            raise OfflineError(f"{org}: its publisher's standing is not in the cache {config.cache}")
        trusted = Hub(config).is_trusted_publisher(org)
    except (DownloadError, OfflineError) as error:
        if known is not None and isinstance(error, DownloadError):
            logger.warning("%s; using what it said last", error)
        return None if known is None else known[0]
    store.remember_publisher(config.endpoint, org, trusted)
    return trusted


def _path(config: Config, trust: TrustFile, version: Version) -> Path:
    return record_path(trust.path, config.endpoint, version.repo_id)
