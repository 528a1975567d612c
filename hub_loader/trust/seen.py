"""What was proven here before, by repository: it makes a warm load quick and an older version impossible.

A folder beside the trust file, <its name without .json>.seen/<hub>/<org>/<name>.json, written by this user alone, while
a cache may be shared. It holds for each branch what it showed last, and for the last envelopes, by their SHA-256,
what they prove: so a signature is checked once, without the library afterwards. Which keys are trusted is not in it.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from ..errors import UsageError
from ..locks import exclusive
from ..record import NOTHING, Record
from .evidence import BundleProof, Proof, PublicKey, Seen, SeenRef, SeenYank
from .statement import key_id
from .trusted import write_file

_KEPT_PROOFS = 32

logger = logging.getLogger("hub_loader")

_T = TypeVar("_T")
_warned: set[Path] = set()


class SeenRecord(Record):
    """What is remembered of a repository: what it showed, and proofs by the SHA-256 of their envelope, oldest first.

    `bundles` are those of sigstore bundles, by the SHA-256 of the bundle.
    """

    seen: Seen = Seen()
    proofs: Mapping[str, Proof] = NOTHING
    bundles: Mapping[str, BundleProof] = NOTHING

    def to_json(self) -> bytes:
        """The file's bytes."""
        data = {
            "highest": self.seen.highest,
            "refs": {name: vars(ref) for name, ref in self.seen.refs.items()},
            "yanked": {digest: vars(yank) for digest, yank in self.seen.yanked.items()},
            "proofs": {digest: _proof_json(proof) for digest, proof in self.proofs.items()},
            "bundles": {digest: vars(proof) for digest, proof in self.bundles.items()},
        }
        return (json.dumps(data, indent=1) + "\n").encode()


def record_path(trust_file: Path, hub: str, repo_id: str) -> Path:
    """Where the record of a repository lies."""
    return trust_file.with_name(f"{trust_file.stem}.seen") / quote(hub, safe="") / f"{repo_id}.json"


def read_record(path: Path) -> SeenRecord:
    """The record; an empty one where there is none. Raises UsageError if it is damaged."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return SeenRecord()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): set KHUB_TRUST_FILE") from None
    try:
        return _record(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(
            f"{path} is damaged: delete it; an older version than it knew of is not noticed then"
        ) from None


def remember(path: Path, new: SeenRecord) -> None:
    """Join what was proven to the record. Where it cannot be written, that is said once: it is proven again then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with exclusive(path.with_suffix(".lock")):
            before = read_record(path)
            joined = SeenRecord(
                _join(before.seen, new.seen),
                _newest({**before.proofs, **new.proofs}),
                _newest({**before.bundles, **new.bundles}),
            )
            if joined != before:
                write_file(path, joined.to_json(), 0o600)
    except OSError as error:
        if path not in _warned:
            _warned.add(path)
            logger.warning(
                "%s cannot be written (%s): signatures are checked at every load, and an older version is not "
                "noticed: set KHUB_TRUST_FILE to a folder of yours",
                path,
                error.strerror,
            )


def forget(path: Path) -> bool:
    """Remove the record; whether there was one. Raises UsageError if that cannot be done."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UsageError(f"{path} cannot be removed: {error.strerror}") from None
    return True


def _join(one: Seen, other: Seen) -> Seen:
    """What both know; of a branch the later signed, so that processes that race take nothing back."""
    refs = dict(one.refs)
    for name, ref in other.refs.items():
        if name not in refs or refs[name].signed <= ref.signed:
            refs[name] = ref
    yanked = dict(one.yanked)
    for digest, yank in other.yanked.items():
        if digest not in yanked or yanked[digest].signed <= yank.signed:
            yanked[digest] = yank
    highest = max((seen.highest for seen in (one, other) if seen.highest is not None), default=None)
    return Seen(highest, refs, yanked)


def _newest(proofs: Mapping[str, _T]) -> dict[str, _T]:
    return dict(list(proofs.items())[-_KEPT_PROOFS:])


def _proof_json(proof: Proof) -> dict[str, Any]:
    fields = {name: value for name, value in vars(proof).items() if name not in ("key", "key_id")}
    return {**fields, "key": base64.b64encode(proof.key.raw).decode()}


def _record(data: Any) -> SeenRecord:
    refs = {
        name: SeenRef(_int(ref["signed"]), str(ref["index_sha256"]), str(ref["key_id"]))
        for name, ref in data["refs"].items()
    }
    yanked = {
        digest: SeenYank(_int(yank["signed"]), str(yank["reason"])) for digest, yank in data["yanked"].items()
    }
    highest = None if data["highest"] is None else _int(data["highest"])
    bundles = {
        digest: BundleProof(*(str(proof[name]) for name in ("metadata_sha256", "identity", "issuer", "root")))
        for digest, proof in data.get("bundles", {}).items()
    }
    proofs = {name: _proof(proof) for name, proof in data["proofs"].items()}
    return SeenRecord(Seen(highest, refs, yanked), proofs, bundles)


def _proof(data: Any) -> Proof:
    key = PublicKey(base64.b64decode(data["key"], validate=True))
    return Proof(
        index_sha256=str(data["index_sha256"]),
        repo_id=str(data["repo_id"]),
        version=_int(data["version"]),
        signed=_int(data["signed"]),
        key=key,
        key_id=key_id(key),
        yanked=None if data["yanked"] is None else str(data["yanked"]),
    )


def _int(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a number")
    return value
