"""ed25519 keys: one short line for a public one, PEM for a private one; signing and checking.

    khub-ed25519 <base64 of 32 bytes> whose it is

The curve is the library `cryptography`'s, which the extra [trust] brings; nothing here imports it before it is used.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MissingExtraError, UsageError
from .dsse import decode_base64
from .evidence import PublicKey

if TYPE_CHECKING:
    from typing import TypeAlias

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    PrivateKey: TypeAlias = Ed25519PrivateKey

KIND = "khub-ed25519"
_PRIVATE_MODE = 0o600


def parse_public_key(line: str) -> PublicKey:
    """The key that a line holds. Raises UsageError if it holds none."""
    kind, _, rest = line.strip().partition(" ")
    text, _, comment = rest.strip().partition(" ")
    try:
        raw = decode_base64(text)
    except ValueError as error:
        raise UsageError(f"{line.strip()[:100]!r} is not a public key: {error}") from None
    if kind != KIND or len(raw) != 32 or not line.strip().isprintable():
        raise UsageError(
            f"{line.strip()[:100]!r} is not a public key: a line of `khub keygen` begins with {KIND}"
        )
    return PublicKey(raw, comment.strip())


def public_line(key: PublicKey) -> str:
    """The key as one line, without its end."""
    return f"{KIND} {base64.b64encode(key.raw).decode()} {key.comment}".rstrip()


def verify(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is the key's over `message`.

    Raises:
        MissingExtraError: the library is not installed.
    """
    with_library("a publisher's signature cannot be checked")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def import_library() -> None:
    """Import what `verify` needs ahead of it; that it is not installed is said where it is needed."""
    with suppress(ImportError):
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401


def generate() -> PrivateKey:
    """A new private key. Raises MissingExtraError."""
    with_library("a key cannot be made")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate()


def public_of(private: PrivateKey, comment: str = "") -> PublicKey:
    """The public half."""
    return PublicKey(private.public_key().public_bytes_raw(), comment)


def write_private(path: Path, private: PrivateKey, passphrase: str | None) -> None:
    """Write a new PEM file that only its owner may read, encrypted where there is a passphrase.

    Raises:
        UsageError: the file exists, or cannot be written.
    """
    write_secret(path, private_pem(private, passphrase))


def private_pem(private: PrivateKey, passphrase: str | None) -> bytes:
    """The key in PEM, encrypted where there is a passphrase."""
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        KeySerializationEncryption,
        NoEncryption,
        PrivateFormat,
    )

    how: KeySerializationEncryption = NoEncryption()
    if passphrase:
        how = BestAvailableEncryption(passphrase.encode())
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read. Raises UsageError: it exists, or cannot be written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_MODE)
    except FileExistsError:
        raise UsageError(f"{path} exists: a key is never overwritten, name another file") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}): name another file") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def read_secret(path: Path) -> bytes:
    """A file that only its owner may read, up to 64 KiB of it. Raises UsageError: others may, or it cannot be read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(1 << 16)
    except OSError as error:
        raise UsageError(
            f"the key {path} cannot be read ({error.strerror}): name the file of `khub keygen`"
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise UsageError(
            f"the key {path} may be read by others: chmod 600 {path}, and make another if it was"
        )
    return data


def read_private(path: Path, passphrase: Callable[[], str]) -> PrivateKey:
    """The private key in a file; `passphrase` is asked if it is encrypted.

    Raises:
        UsageError: it cannot be read, others may read it, it is no such key, or the passphrase is another.
        MissingExtraError
    """
    return parse_private(read_secret(path), passphrase, origin=str(path))


def parse_private(data: bytes, passphrase: Callable[[], str], *, origin: str) -> PrivateKey:
    """The private key in PEM. Raises UsageError, MissingExtraError as `read_private`."""
    with_library("a key cannot be used")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        try:
            key = load_pem_private_key(data, None)
        except TypeError:  # what the library raises for one that is encrypted
            key = load_pem_private_key(data, passphrase().encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(
            f"{origin} holds no private key that this passphrase opens: use one of `khub keygen`"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{origin} is a key of another kind: use one of `khub keygen`")
    return key


def with_library(what: str) -> None:
    """Raise MissingExtraError, saying what cannot be done, where the library is not installed."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtraError(f"{what} without `cryptography`: pip install 'kernel-hub[trust]'") from None
