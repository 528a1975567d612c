"""Keys in TUF's terms, and those that the server itself holds.

The server's keys sign snapshot and timestamp. They are files in the data folder, `trust/<key id>.pem`, readable by
their owner alone, or PEM texts in KHUB_ONLINE_KEYS, for servers that share a database and get secrets from elsewhere.
A stolen one cannot make a kernel: it can only keep readers on what publishers have signed before, until it is rotated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from securesystemslib.signer import CryptoSigner, SSlibKey

from hub_loader.errors import RegistryError, UsageError
from hub_loader.trust.keys import generate, parse_private, read_private, write_private
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
