"""What a publisher signs: that an index.json is a version of a repository. Pure: bytes in, bytes out.

An in-toto statement (https://in-toto.io/Statement/v1) with SLSA provenance (https://slsa.dev/provenance/v1): that of
the build, where the package has one, with the release beside it under a name of ours, as SLSA has extensions:

    "predicate": {…, "kernelhub_release": {"repository": "org/name", "version": 1, "signed": <seconds since 1970>,
                                           "key": "<base64 of the signer's public key>", "yanked": "<reason>"}}

The subject is index.json by its SHA-256, hence every byte of every variant. Neither commit nor hub is part of it: a
mirror may serve it. `yanked` is there only where the publisher takes the version back.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import SignatureError
from ..manifest import INDEX_NAME
from .dsse import Envelope, decode_base64, strict_json
from .evidence import Proof, PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILDER = "urn:kernel-hub:unknown"
RELEASE = "kernelhub_release"
_FIELDS = {"repository", "version", "signed", "key", "yanked"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_REASON = 500
_LAST_SECOND = 1 << 40


def key_id(key: PublicKey) -> str:
    """SHA-256 of the key's 32 bytes in lower-case hex."""
    return hashlib.sha256(key.raw).hexdigest()


def release_statement(proof: Proof, built: bytes | None, *, origin: str = "the provenance") -> bytes:
    """The payload that `proof.key` is to sign. `built` is the build's own statement, None where there is none.

    Raises:
        SignatureError: `built` is about another index.json, or no such statement.
    """
    release = {
        "repository": proof.repo_id,
        "version": proof.version,
        "signed": proof.signed,
        "key": _base64(proof.key.raw),
    }
    if proof.yanked is not None:
        release["yanked"] = proof.yanked
    if built is None:
        return _json(_minimal(proof, release))
    try:
        data = strict_json(built)
        if _subject(data) != proof.index_sha256 or data["predicateType"] != PREDICATE_TYPE:
            raise ValueError(f"it is not about this {INDEX_NAME}")
        data["predicate"] = {**data["predicate"], RELEASE: release}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(f"{origin} cannot be signed ({error}): build the package again") from None
    return _json(data)


def built_statement(envelope: Envelope) -> bytes:
    """The build's statement out of a signed one, for signing it again. Raises SignatureError."""
    try:
        data = strict_json(envelope.payload)
        del data["predicate"][RELEASE]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(f"the statement is malformed ({error})") from None
    return _json(data)


def read_statement(envelope: Envelope, *, origin: str) -> Proof:
    """What the payload says: a proof once the signature of `key` over it holds, which is not looked at here.

    Raises:
        SignatureError: it is not a statement about a release.
    """
    if envelope.payload_type != PAYLOAD_TYPE:
        raise SignatureError(f"{origin} signs {envelope.payload_type!r}, not {PAYLOAD_TYPE}")
    try:
        return _proof(strict_json(envelope.payload))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(f"{origin} signs no release ({error!r}): do not use the package") from None


def _proof(data: Any) -> Proof:
    if data["_type"] != STATEMENT_TYPE or data["predicateType"] != PREDICATE_TYPE:
        raise ValueError("the statement is of another type")
    release = data["predicate"][RELEASE]
    if not isinstance(release, dict) or not release.keys() <= _FIELDS:
        raise ValueError(f"{RELEASE} has a name that is not known: upgrade kernel-hub")
    raw = decode_base64(release["key"])
    if len(raw) != 32:
        raise ValueError("the key is not one of ed25519")
    key = PublicKey(raw)
    return Proof(
        index_sha256=_subject(data),
        repo_id=_text(release["repository"], 200),
        version=_whole(release["version"]),
        signed=_whole(release["signed"]),
        key=key,
        key_id=key_id(key),
        yanked=_text(release["yanked"], _MAX_REASON) if "yanked" in release else None,
    )


def _subject(data: Any) -> str:
    """The digest of index.json, which is among the subjects exactly once. Raises ValueError, KeyError, TypeError."""
    found = [one["digest"]["sha256"] for one in data["subject"] if one["name"] == INDEX_NAME]
    if len(found) != 1 or not isinstance(found[0], str) or not _SHA256.fullmatch(found[0]):
        raise ValueError(f"it does not name one {INDEX_NAME}")
    return found[0]


def _minimal(proof: Proof, release: Mapping[str, Any]) -> dict[str, Any]:
    """For packages that others have built: what was built how is not known, and is not claimed."""
    parameters = {"kernel": proof.repo_id.partition("/")[2], "version": proof.version}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": INDEX_NAME, "digest": {"sha256": proof.index_sha256}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {"buildType": "urn:kernel-hub:sign:v1", "externalParameters": parameters},
            "runDetails": {"builder": {"id": BUILDER}},
            RELEASE: dict(release),
        },
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _json(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _LAST_SECOND:
        raise ValueError(f"{str(value)[:40]!r} is not a whole number")
    return value


def _text(value: Any, limit: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= limit or not value.isprintable():
        raise ValueError("a text is empty, too long or not printable")
    return value
