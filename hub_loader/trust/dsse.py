"""DSSE envelopes: a payload with its type, and signatures over both. Pure: bytes in, frozen records out.

Format: https://github.com/secure-systems-lab/dsse/blob/master/envelope.md. Read strictly, as what is read decides
what is trusted: standard base64, no name twice, sizes bounded before anything is parsed.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from ..errors import SignatureError
from ..record import Record

ENVELOPE_NAME = "index.json.dsse"
MAX_ENVELOPE_BYTES = 8 << 20
_MAX_SIGNATURES = 16
_MAX_TEXT = 256


class Signature(Record):
    """One signature, and a hint at the key that made it."""

    key_id: str
    value: bytes


class Envelope(Record):
    """A payload of a type, signed as `pae` joins them."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def to_json(self) -> bytes:
        """The file's bytes; equal envelopes give equal bytes."""
        data = {
            "payloadType": self.payload_type,
            "payload": base64.b64encode(self.payload).decode(),
            "signatures": [
                {"keyid": one.key_id, "sig": base64.b64encode(one.value).decode()} for one in self.signatures
            ],
        }
        return (json.dumps(data, indent=1) + "\n").encode()


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, the bytes that are signed: no payload can pass for another type's."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse_envelope(data: bytes, *, origin: str) -> Envelope:
    """Parse an envelope. `origin` names it in errors.

    Raises:
        SignatureError: it is not one, or larger than `MAX_ENVELOPE_BYTES`.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise SignatureError(
            f"{origin} has {len(data)} bytes, no envelope has more than {MAX_ENVELOPE_BYTES}"
        )
    try:
        return _envelope(strict_json(data))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(f"{origin} is not a DSSE envelope ({error}): do not use the package") from None


def strict_json(data: bytes) -> Any:
    """JSON in UTF-8 without a name twice in an object and without NaN. Raises ValueError, RecursionError."""
    return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)


def decode_base64(text: Any) -> bytes:
    """The bytes of standard base64 in its one canonical spelling. Raises ValueError, TypeError."""
    if not isinstance(text, str):
        raise TypeError("base64 is a text")
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"malformed base64: {error}") from None
    if base64.b64encode(data).decode() != text:
        raise ValueError("base64 is not in its canonical spelling")
    return data


def _envelope(data: Any) -> Envelope:
    if not isinstance(data, dict) or data.keys() != {"payload", "payloadType", "signatures"}:
        raise ValueError("it must have payload, payloadType and signatures, and nothing else")
    signatures = data["signatures"]
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= _MAX_SIGNATURES:
        raise ValueError(f"it must have between 1 and {_MAX_SIGNATURES} signatures")
    kind = _text(data["payloadType"], "payloadType")
    return Envelope(kind, decode_base64(data["payload"]), tuple(_signature(one) for one in signatures))


def _signature(data: Any) -> Signature:
    if not isinstance(data, dict) or data.keys() != {"keyid", "sig"}:
        raise ValueError("a signature must have keyid and sig, and nothing else")
    return Signature(_text(data["keyid"], "keyid"), decode_base64(data["sig"]))


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or not value.isprintable():
        raise ValueError(f"{what} must be a short text")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
