"""Who signed a version and what it was made of, as its files say. Pure.

`index.json.dsse` is the publisher's envelope; whether its signature holds, and is about this very index.json of this
repository, is the loader's own code to say (`hub_loader.trust`). Whose the key is, the page does not vouch for: a
client decides by the keys that it trusts. Without an envelope `provenance.intoto.json` is the statement, unsigned.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from hub_loader.errors import SignatureError
from hub_loader.manifest import INDEX_NAME, Index, sha256_hex
from hub_loader.trust.dsse import ENVELOPE_NAME, parse_envelope
from hub_loader.trust.evidence import Proof
from hub_loader.trust.judge import prove

STATEMENT_NAME = "provenance.intoto.json"
_MAX_SHOWN = 100


@dataclass(frozen=True)
class Dependency:
    """One thing a version was made of: its name, and the digest or version that the statement gives."""

    name: str
    detail: str


@dataclass(frozen=True)
class Provenance:
    """`state` is unsigned; signed; yanked: taken back by who signed; or broken: clients refuse the version."""

    state: str
    explanation: str
    key_id: str = ""
    builder: str = ""
    build_type: str = ""
    dependencies: tuple[Dependency, ...] = ()
    subjects: int = 0


_UNSIGNED = Provenance(
    "unsigned", "No publisher has signed this version: its files are checked against index.json alone."
)


def read_provenance(
    read: Callable[[str], bytes | None], repo_id: str, index: Index | None, data: bytes | None
) -> Provenance:
    """What the envelope or the statement among a commit's files says. `data` are the bytes of index.json."""
    envelope, statement = read(ENVELOPE_NAME), read(STATEMENT_NAME)
    if envelope is None:
        return _UNSIGNED if statement is None else _made_from(statement, STATEMENT_NAME, _UNSIGNED)
    try:
        proof = prove(envelope, origin=ENVELOPE_NAME)
    except SignatureError as error:
        return Provenance("broken", f"Clients refuse this version: {error}.")
    payload = parse_envelope(envelope, origin=ENVELOPE_NAME).payload
    return _made_from(payload, ENVELOPE_NAME, _signed(proof, repo_id, index, data))


def _signed(proof: Proof, repo_id: str, index: Index | None, data: bytes | None) -> Provenance:
    if index is None or data is None or sha256_hex(data) != proof.index_sha256:
        about = f"another {INDEX_NAME} than this one"
    elif (proof.repo_id, proof.version) != (repo_id, index.version):
        about = f"version {proof.version} of {proof.repo_id}"
    else:
        return _holds(proof)
    return Provenance("broken", f"Clients refuse this version: its signature is about {about}.", proof.key_id)


def _holds(proof: Proof) -> Provenance:
    if proof.yanked is not None:
        return Provenance(
            "yanked", f"Its publisher has taken this version back: {proof.yanked}", proof.key_id
        )
    when = ""
    if proof.signed < 1 << 35:
        date = datetime.fromtimestamp(proof.signed, timezone.utc)
        when = f" on {date.day} {date:%b %Y}"
    return Provenance(
        "signed",
        f"The key below signed this {INDEX_NAME}{when}, and so the digest of every file. The signature holds; "
        "whether the key is its publisher's, your client decides by the keys that you trust.",
        proof.key_id,
    )


def _made_from(statement: bytes, name: str, known: Provenance) -> Provenance:
    """`known` with what the statement says of the build."""
    try:
        return _read(json.loads(statement), known)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return replace(
            known, explanation=f"{known.explanation} What {name} says of its build cannot be read."
        )


def _read(statement: Any, known: Provenance) -> Provenance:
    predicate = statement.get("predicate") or {}
    definition = predicate.get("buildDefinition") or {}
    builder = (predicate.get("runDetails") or {}).get("builder") or {}
    versions = ", ".join(f"{name} {version}" for name, version in (builder.get("version") or {}).items())
    return replace(
        known,
        builder=" ".join(part for part in (str(builder.get("id") or ""), versions) if part)[:300],
        build_type=str(definition.get("buildType") or "")[:300],
        dependencies=tuple(
            _dependency(item) for item in (definition.get("resolvedDependencies") or [])[:_MAX_SHOWN]
        ),
        subjects=len(statement.get("subject") or []),
    )


def _dependency(item: Any) -> Dependency:
    details = {**(item.get("digest") or {}), **(item.get("annotations") or {})}
    shown = ", ".join(f"{kind} {value}" for kind, value in details.items())
    return Dependency(str(item.get("name") or item.get("uri") or "?")[:200], shown[:300])
