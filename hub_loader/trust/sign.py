"""Sign: a private key, an index.json and what it is released as give an envelope."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidKernelError, UsageError
from ..hub import check_repo_id
from ..manifest import INDEX_NAME, parse_index, sha256_hex
from .dsse import Envelope, Signature, pae
from .evidence import Proof
from .keys import parse_private, public_of, read_private
from .statement import PAYLOAD_TYPE, key_id, release_statement

if TYPE_CHECKING:
    from .keys import PrivateKey

KEY_VARIABLE = "KHUB_SIGNING_KEY"
PASSPHRASE_VARIABLE = "KHUB_KEY_PASSPHRASE"
STATEMENT_NAME = "provenance.intoto.json"


def sign_index(
    index: bytes,
    repo_id: str,
    private: PrivateKey,
    *,
    signed: int,
    built: bytes | None = None,
    yanked: str | None = None,
) -> bytes:
    """The envelope that makes `index` the version of `repo_id` that it says it is, or takes that back.

    Args:
        signed: seconds since 1970; later than what was signed for this version before.
        built: the build's statement about this index.json, which the signature then covers too.
        yanked: why the version is not to be used any more.

    Raises:
        InvalidKernelError: `index` is malformed.
        SignatureError: `built` is about something else.
        UsageError: the reason is too long or not printable.
    """
    check_repo_id(repo_id)
    if yanked is not None and not (0 < len(yanked) <= 500 and yanked.isprintable()):
        raise UsageError("a reason is one line of at most 500 characters")
    version = parse_index(index, origin=INDEX_NAME).version
    if version < 0:
        raise InvalidKernelError(f"{INDEX_NAME} has the version {version}: versions count from 0")
    key = public_of(private)
    proof = Proof(sha256_hex(index), repo_id, version, signed, key, key_id(key), yanked)
    payload = release_statement(proof, built)
    signature = Signature(proof.key_id, private.sign(pae(PAYLOAD_TYPE, payload)))
    return Envelope(PAYLOAD_TYPE, payload, (signature,)).to_json()


def signing_key(path: Path | None, environ: Mapping[str, str] | None = None) -> PrivateKey | None:
    """The private key in the file `path`, else the one that KHUB_SIGNING_KEY holds as PEM; None without either.

    A passphrase is KHUB_KEY_PASSPHRASE, or is asked for.

    Raises:
        UsageError: it cannot be used. MissingExtraError
    """
    env = os.environ if environ is None else environ
    if path is not None:
        return read_private(path, lambda: ask_passphrase(str(path), env))
    if held := env.get(KEY_VARIABLE, ""):
        return parse_private(held.encode(), lambda: ask_passphrase(KEY_VARIABLE, env), origin=KEY_VARIABLE)
    return None


def ask_passphrase(what: str, environ: Mapping[str, str]) -> str:
    """The passphrase of the key `what`. Raises UsageError where nobody can be asked."""
    if PASSPHRASE_VARIABLE in environ:
        return environ[PASSPHRASE_VARIABLE]
    if not sys.stdin.isatty():
        raise UsageError(
            f"the key {what} has a passphrase: set {PASSPHRASE_VARIABLE}, or run this in a terminal"
        )
    return getpass.getpass(f"Passphrase of {what}: ")
