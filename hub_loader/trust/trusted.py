"""The user's trust file: which keys may sign for which organization on which hub. Read at each load, in one piece.

KHUB_TRUST_FILE, else $XDG_CONFIG_HOME/kernel-hub/trust.json, else ~/.config/kernel-hub/trust.json:

    {"schema": 1,
     "keys": [{"hub": "https://hub.example", "org": "org", "key": "khub-ed25519 … Jo's", "revoked": false}, …],
     "identities": [{"hub": …, "org": …, "identity": "https://github.com/…", "issuer": "https://…"}, …]}

`khub trust` writes it. What was proven with these keys lies beside it (seen.py).
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..locks import exclusive
from ..record import Record
from .evidence import PublicKey, TrustedKey
from .keys import parse_public_key, public_line
from .statement import key_id

TRUST_NAME = "trust.json"
SCHEMA = 1


class KeyEntry(Record):
    """A key that may sign for `org` on the hub `hub`, or may no more."""

    hub: str
    org: str
    key: PublicKey
    revoked: bool = False

    @property
    def id(self) -> str:
        """The key's id."""
        return key_id(self.key)


class IdentityEntry(Record):
    """Who may sign for `org` with sigstore: an identity as its certificates state it, vouched for by `issuer`.

    `root` is the file of the trusted root to hold it against; "" for the one that the library brings.
    """

    hub: str
    org: str
    identity: str
    issuer: str
    root: str = ""


class TrustFile(Record):
    """The trust file at `path`, which need not exist yet."""

    path: Path
    keys: tuple[KeyEntry, ...] = ()
    identities: tuple[IdentityEntry, ...] = ()

    def keys_for(self, hub: str, repo_id: str) -> tuple[TrustedKey, ...]:
        """The keys of the organization that `repo_id` belongs to, revoked ones among them."""
        org, where = repo_id.partition("/")[0], str(self.path)
        return tuple(
            TrustedKey(entry.id, entry.key.comment, where, entry.revoked)
            for entry in self.keys
            if (entry.hub, entry.org) == (hub, org)
        )

    def identities_for(self, hub: str, repo_id: str) -> tuple[IdentityEntry, ...]:
        """Who may sign with sigstore for the organization that `repo_id` belongs to."""
        org = repo_id.partition("/")[0]
        return tuple(entry for entry in self.identities if (entry.hub, entry.org) == (hub, org))

    def add(self, entry: KeyEntry) -> TrustFile:
        """With the key, also where it was revoked or removed before."""
        others = tuple(one for one in self.keys if _place(one) != _place(entry))
        return replace(self, keys=(*others, entry))

    def add_identity(self, entry: IdentityEntry) -> TrustFile:
        """With the sigstore identity."""
        return replace(self, identities=(*(one for one in self.identities if one != entry), entry))

    def remove(self, hub: str, org: str, chosen: str) -> TrustFile:
        """Without the key whose id, line or comment is `chosen`, or that identity. Raises UsageError if none is."""
        identities = tuple(
            one for one in self.identities if (one.hub, one.org, one.identity) != (hub, org, chosen.strip())
        )
        if identities != self.identities:
            return replace(self, identities=identities)
        found = self._find(hub, org, chosen)
        return replace(self, keys=tuple(one for one in self.keys if one != found))

    def revoke(self, hub: str, org: str, chosen: str) -> TrustFile:
        """With the key kept as one that may not sign any more. Raises UsageError if there is none."""
        found = self._find(hub, org, chosen)
        return replace(
            self, keys=tuple(replace(one, revoked=True) if one == found else one for one in self.keys)
        )

    def to_json(self) -> bytes:
        """The file's bytes."""
        data = {
            "schema": SCHEMA,
            "keys": [
                {"hub": one.hub, "org": one.org, "key": public_line(one.key), "revoked": one.revoked}
                for one in self.keys
            ],
            "identities": [vars(one) for one in self.identities],
        }
        return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()

    def _find(self, hub: str, org: str, chosen: str) -> KeyEntry:
        wanted = " ".join(chosen.split())
        found = [
            one
            for one in self.keys
            if (one.hub, one.org) == (hub, org)
            and (
                one.id.startswith(wanted)
                or public_line(one.key).startswith(wanted)
                or one.key.comment == wanted
            )
        ]
        if len(found) != 1 or not wanted:
            raise UsageError(
                f"{self.path} has {len(found)} keys {chosen!r} of {org} on {hub}: see `khub trust list`, and name "
                "one by its id"
            )
        return found[0]


def trust_path(environ: Mapping[str, str] | None = None) -> Path:
    """Where the trust file is, or would be. Raises UsageError if there is no place for it."""
    env = os.environ if environ is None else environ
    if named := env.get("KHUB_TRUST_FILE", ""):
        return Path(os.path.expandvars(named)).expanduser().absolute()
    config = env.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(config) if config.startswith("/") else Path("~/.config").expanduser()
    except RuntimeError:
        raise UsageError("there is no home folder for the trust file: set KHUB_TRUST_FILE") from None
    return folder / "kernel-hub" / TRUST_NAME


def read_trust(environ: Mapping[str, str] | None = None) -> TrustFile:
    """The user's trust file; an empty one where there is none.

    Raises:
        UsageError: it cannot be read, is malformed, or anybody may write it.
    """
    path = trust_path(environ)
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except FileNotFoundError:
        return TrustFile(path)
    except OSError as error:
        raise UsageError(
            f"the trust file {path} cannot be read ({error.strerror}): set KHUB_TRUST_FILE"
        ) from None
    if stat.S_IMODE(mode) & stat.S_IWOTH:
        raise UsageError(
            f"the trust file {path} may be written by anybody: look through it, then chmod o-w {path}"
        )
    return parse_trust(data, path)


def parse_trust(data: bytes, path: Path) -> TrustFile:
    """Parse a trust file that lies at `path`. Raises UsageError if it is malformed."""
    try:
        document = json.loads(data)
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']!r} is not known: upgrade kernel-hub")
        keys = tuple(_key(one) for one in document["keys"])
        identities = tuple(_identity(one) for one in document.get("identities", []))
        return TrustFile(path, keys, identities)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise UsageError(f"the trust file {path} is malformed ({error}): mend it, or write it anew") from None


def change_trust(
    change: Callable[[TrustFile], TrustFile], environ: Mapping[str, str] | None = None
) -> TrustFile:
    """Apply `change` to the trust file, one process at a time. Raises UsageError if it cannot be written."""
    path = trust_path(environ)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with exclusive(path.with_suffix(".lock")):
            changed = change(read_trust(environ))
            write_file(path, changed.to_json(), 0o644)
    except OSError as error:
        raise UsageError(f"the trust file {path} cannot be written ({error}): set KHUB_TRUST_FILE") from None
    return changed


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Put a file there in one piece. Raises OSError."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _place(entry: KeyEntry) -> tuple[str, str, bytes]:
    return entry.hub, entry.org, entry.key.raw


def _key(data: Any) -> KeyEntry:
    revoked = data["revoked"]
    if type(revoked) is not bool:
        raise ValueError("revoked is true or false")
    return KeyEntry(_text(data["hub"]), _text(data["org"]), parse_public_key(_text(data["key"])), revoked)


def _identity(data: Any) -> IdentityEntry:
    hub, org, identity, issuer = (_text(data[name]) for name in ("hub", "org", "identity", "issuer"))
    root = data.get("root", "")
    return IdentityEntry(hub, org, identity, issuer, _text(root) if root else "")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{str(value)[:40]!r} is not a text")
    return value
