"""Our ed25519 keys in TUF's terms. Imports `tuf`'s libraries: only for modules that need them anyway."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, SSlibKey


def tuf_key(raw: bytes) -> SSlibKey:
    """The public key of these 32 bytes; its id is their SHA-256, as everywhere in this project."""
    return SSlibKey(hashlib.sha256(raw).hexdigest(), "ed25519", "ed25519", {"public": raw.hex()})


def signer_of(private: Ed25519PrivateKey) -> CryptoSigner:
    """What signs with `private`."""
    return CryptoSigner(private, tuf_key(private.public_key().public_bytes_raw()))
