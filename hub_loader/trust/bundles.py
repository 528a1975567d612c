"""Sigstore bundles, as packages of the public Hub have them: `metadata.json.sigstore` beside a variant's metadata.json.

A bundle says that an identity, vouched for by an issuer, has signed metadata.json, whose digest covers the variant. The
library `sigstore` checks it, offline, against a trusted root: the one that the user gave, else that of the library. The
form is looked at without it, at every load.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError, PolicyError, SignatureError, UsageError
from ..manifest import sha256_hex
from .dsse import decode_base64, strict_json
from .trusted import IdentityEntry

if TYPE_CHECKING:
    from sigstore.models import Bundle

MAX_BUNDLE_BYTES = 1 << 20
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle"


def check_form(bundle: bytes, metadata: bytes, *, origin: str) -> None:
    """Raise SignatureError unless `bundle` says that it signs `metadata`; whether it does is not computed."""
    try:
        if len(bundle) > MAX_BUNDLE_BYTES:
            raise ValueError(f"it has more than {MAX_BUNDLE_BYTES} bytes")
        data = strict_json(bundle)
        if not str(data["mediaType"]).startswith(_MEDIA_TYPE) or "verificationMaterial" not in data:
            raise ValueError("it is no bundle")
        digest = data["messageSignature"]["messageDigest"]["digest"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(
            f"{origin} is not a sigstore bundle over metadata.json ({error!r}): do not use it"
        ) from None
    if _hex(digest) != sha256_hex(metadata):
        raise SignatureError(f"{origin} signs another metadata.json: do not use it, tell the publisher")


def verify_bundle(
    bundle: bytes, metadata: bytes, allowed: Sequence[IdentityEntry], *, origin: str
) -> IdentityEntry:
    """Which of the `allowed` has signed `metadata`.

    Raises:
        SignatureError: the bundle is malformed or does not hold.
        PolicyError: it holds, and is of somebody else.
        MissingExtraError: the library is not installed.
        UsageError: a trusted root cannot be read.
    """
    check_form(bundle, metadata, origin=origin)
    try:
        from sigstore.models import Bundle
    except ModuleNotFoundError:
        raise MissingExtraError(
            f"{origin} cannot be checked without `sigstore`: pip install 'kernel-hub[sigstore]'"
        ) from None
    from sigstore.errors import Error

    try:
        parsed = Bundle.from_json(bundle)
    except (Error, ValueError) as error:
        raise SignatureError(f"{origin} is not a sigstore bundle ({error}): do not use it") from None
    reasons = []
    for root in dict.fromkeys(entry.root for entry in allowed):
        reason = _why_not(parsed, metadata, root)
        if reason is None:
            return _signer(parsed, [entry for entry in allowed if entry.root == root], origin)
        reasons.append(reason)
    raise SignatureError(f"{origin} does not hold ({'; '.join(reasons)}): do not use it")


def _why_not(bundle: Bundle, metadata: bytes, root: str) -> str | None:
    """Why a bundle does not hold under a trusted root, whoever signed; None if it does."""
    from sigstore.errors import Error
    from sigstore.verify import Verifier
    from sigstore.verify.policy import UnsafeNoOp

    verifier = Verifier.production(offline=True) if not root else Verifier(trusted_root=_read_root(root))
    try:
        verifier.verify_artifact(metadata, bundle, UnsafeNoOp())  # who signed is asked afterwards
    except (Error, ValueError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _signer(bundle: Bundle, allowed: Sequence[IdentityEntry], origin: str) -> IdentityEntry:
    from sigstore.errors import VerificationError
    from sigstore.verify.policy import Identity

    for entry in allowed:
        try:
            Identity(identity=entry.identity, issuer=entry.issuer).verify(bundle.signing_certificate)
        except VerificationError:
            continue
        return entry
    raise PolicyError(
        f"{origin} is signed by none of {', '.join(entry.identity for entry in allowed)}: see `khub trust list`"
    )


def _read_root(path: str) -> Any:
    from sigstore.errors import Error
    from sigstore.models import TrustedRoot

    try:
        return TrustedRoot.from_file(str(Path(path)))
    except (OSError, ValueError, Error) as error:
        raise UsageError(
            f"the trusted root {path} cannot be read ({error}): add the identity again"
        ) from None


def _hex(digest: Any) -> str | None:
    try:
        return decode_base64(digest).hex()
    except (ValueError, TypeError):
        return None
