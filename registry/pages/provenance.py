"""Who signed a version and what it was made of, as its files say. Pure.

`index.json.dsse` is a DSSE envelope (https://github.com/secure-systems-lab/dsse) around an in-toto statement;
without it `provenance.intoto.json` is the statement, unsigned. A page shows what is there and whether the
statement is about this very index.json. It vouches for nothing: a client verifies with the keys it trusts.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hub_loader.manifest import INDEX_NAME, sha256_hex

ENVELOPE_NAME = "index.json.dsse"
STATEMENT_NAME = "provenance.intoto.json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_MAX_SHOWN = 100


@dataclass(frozen=True)
class Dependency:
    """One thing a version was made of: its name, and the digest or version that the statement gives."""

    name: str
    detail: str


@dataclass(frozen=True)
class Provenance:
    """`state` is unsigned, signed (by whom, a client has to verify) or broken: malformed, or of another index."""

    state: str
    explanation: str
    key_ids: tuple[str, ...] = ()
    builder: str = ""
    build_type: str = ""
    dependencies: tuple[Dependency, ...] = ()
    subjects: int = 0


def read_provenance(read: Callable[[str], bytes | None], index: bytes | None) -> Provenance:
    """What the envelope or the statement among a commit's files says. `index` is index.json, None without."""
    envelope, statement = read(ENVELOPE_NAME), read(STATEMENT_NAME)
    try:
        if envelope is not None:
            return _signed(json.loads(envelope), index)
        if statement is not None:
            return _read(json.loads(statement), "unsigned", _UNSIGNED, ())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        name = STATEMENT_NAME if envelope is None else ENVELOPE_NAME
        return Provenance("broken", f"{name} is malformed: the publisher has to publish it again.")
    return Provenance("unsigned", f"{_UNSIGNED} There is no provenance either.")


_UNSIGNED = "No publisher has signed this version: its files are checked against index.json alone."


def _signed(envelope: Any, index: bytes | None) -> Provenance:
    key_ids = tuple(str(signature["keyid"])[:128] for signature in envelope["signatures"])
    if envelope["payloadType"] != _PAYLOAD_TYPE or not key_ids:
        raise ValueError("no in-toto statement, or no signature")
    statement = json.loads(_base64(envelope["payload"]))
    digests = [subject["digest"].get("sha256") for subject in statement["subject"]]
    if index is None or sha256_hex(index) not in digests:
        said = f"{ENVELOPE_NAME} signs another {INDEX_NAME} than this one: clients refuse the version."
        return _read(statement, "broken", said, key_ids)
    said = (
        f"Beside this {INDEX_NAME}, which holds the digest of every file, lies a signature that names the key below. "
        "This page does not verify it: your client does, with the keys that you trust."
    )
    return _read(statement, "signed", said, key_ids)


def _read(statement: Any, state: str, explanation: str, key_ids: tuple[str, ...]) -> Provenance:
    predicate = statement.get("predicate") or {}
    definition = predicate.get("buildDefinition") or {}
    builder = (predicate.get("runDetails") or {}).get("builder") or {}
    versions = ", ".join(f"{name} {version}" for name, version in (builder.get("version") or {}).items())
    return Provenance(
        state=state,
        explanation=explanation,
        key_ids=key_ids,
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


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:  # DSSE allows the URL-safe alphabet as well
        return base64.b64decode(text, altchars=b"-_", validate=True)
