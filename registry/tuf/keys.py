"""Keys in TUF's terms, and those that the server itself holds.

The server's keys sign snapshot and timestamp. They are files in the data folder, `trust/<key id>.pem`, readable by
their owner alone, or PEM texts in KHUB_ONLINE_KEYS, for servers that share a database and get secrets from elsewhere.
A stolen one cannot make a kernel: it can only keep readers on what publishers have signed before, until it is rotated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from securesystemslib.signer import CryptoSigner, SSlibKey

from hub_loader.errors import RegistryError, UsageError
from hub_loader.trust.keys import (
    generate,
    parse_private,
    private_pem,
    read_private,
    read_secret,
    write_private,
    write_secret,
)
from hub_loader.trust.tuf_keys import signer_of

VARIABLE = "KHUB_ONLINE_KEYS"
_PEM = re.compile(r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", re.DOTALL)


class OnlineKeys:
    """The keys that the server holds, by id."""

    def __init__(self, data: Path, environ: Mapping[str, str] | None = None) -> None:
        self._folder = data / "trust"
        self._environ = os.environ if environ is None else environ

    def create(self) -> SSlibKey:
        """Make a key and keep it. Raises RegistryError: the folder cannot be written."""
        private = generate()
        signer = signer_of(private)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path(signer.public_key.keyid), private, None)
        except (OSError, UsageError) as error:
            raise RegistryError(f"{self._folder} cannot be written: {error}") from None
        return signer.public_key

    def remove(self, keyid: str) -> None:
        """Forget a key that no root names any more."""
        self._path(keyid).unlink(missing_ok=True)

    def save(self, needed: Mapping[str, list[str]], path: Path, passphrase: str | None) -> list[str]:
        """Write the keys of roles, ids by role, to one new file for its owner alone; returns their ids.

        Raises RegistryError: one is not here. UsageError: the file exists, or cannot be written.
        """
        signers = {}
        for role, keyids in needed.items():
            signer = self.signer(role, keyids)
            signers[signer.public_key.keyid] = signer
        keys = [
            parse_private(one.private_bytes, _no_passphrase, origin=name) for name, one in signers.items()
        ]
        write_secret(path, b"".join(private_pem(key, passphrase) for key in keys))
        return list(signers)

    def load(self, wanted: Iterable[str], path: Path, passphrase: Callable[[], str]) -> list[str]:
        """Keep those keys of a file of `save` whose ids are wanted; returns their ids.

        Raises RegistryError: the folder cannot be written. UsageError: the file is another, or others may read it.
        """
        texts = _PEM.findall(read_secret(path).decode("ascii", "replace"))
        keys = [parse_private(text.encode(), passphrase, origin=str(path)) for text in texts]
        found = {signer_of(key).public_key.keyid: key for key in keys}
        kept = [keyid for keyid in found if keyid in set(wanted)]
        if not kept:
            raise UsageError(
                f"{path} has no key that the root of this registry names: rotate with `khub registry trust rotate`"
            )
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for keyid in kept:
                if not self._path(keyid).exists():
                    write_private(self._path(keyid), found[keyid], None)
        except OSError as error:
            raise RegistryError(f"{self._folder} cannot be written: {error}") from None
        return kept

    def lacking(self, needed: Mapping[str, list[str]]) -> list[str]:
        """The roles of which no key is here."""
        given = self._given()
        return [
            role
            for role, keyids in needed.items()
            if not any(keyid in given or self._path(keyid).exists() for keyid in keyids)
        ]

    def signer(self, role: str, keyids: list[str]) -> CryptoSigner:
        """What signs `role`: the first of `keyids` that is here. Raises RegistryError: none is."""
        given = self._given()
        for keyid in keyids:
            if keyid in given:
                return given[keyid]
            if self._path(keyid).exists():
                return self._read(self._path(keyid))
        raise RegistryError(
            f"the key that signs {role} ({', '.join(keyid[:12] for keyid in keyids)}) is neither in {self._folder} "
            f"nor in {VARIABLE}: bring it back, or `khub registry trust rotate {role}`"
        )

    def _path(self, keyid: str) -> Path:
        return self._folder / f"{keyid}.pem"

    def _read(self, path: Path) -> CryptoSigner:
        try:
            return signer_of(read_private(path, _no_passphrase))
        except UsageError as error:
            raise RegistryError(str(error)) from None

    def _given(self) -> dict[str, CryptoSigner]:
        texts = _PEM.findall(self._environ.get(VARIABLE, ""))
        try:
            keys = [parse_private(text.encode(), _no_passphrase, origin=VARIABLE) for text in texts]
        except UsageError as error:
            raise RegistryError(str(error)) from None
        return {signer.public_key.keyid: signer for signer in map(signer_of, keys)}


def _no_passphrase() -> str:
    raise UsageError("a key of the server cannot have a passphrase: nobody is there to type it")
