"""Check an issuer's token: signature, issuer, audience, times. What it says is judged in `publishers`.

The algorithm is the key's, not the token's, and one of an allow-list without shared secrets; the key is
looked up by its id among those of the issuer that the token names, and that issuer has to be configured here.
Keys and addresses inside the token's header are never followed.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timezone
from typing import Any, Protocol

import jwt

from ..errors import bad_request, unauthorized
from .keys import ALGORITHMS

LEEWAY = 60  # seconds by which clocks may differ
_LONGEST = 16 << 10
_LONGEST_LIFE = 24 * 3600
_REQUIRED = ["iss", "aud", "exp", "iat", "jti", "sub"]


class Keys(Protocol):
    """Where signature keys come from."""

    def find(self, issuer: str, kid: str) -> jwt.PyJWK:
        """The issuer's key of that id. Raises RequestError."""
        ...


def verify(token: object, issuers: Collection[str], audience: str, keys: Keys) -> dict[str, Any]:
    """The claims of a token that one of `issuers` made for `audience`, and that is valid now.

    Raises RequestError: 400 if it is no token at all, 401 with the reason if it proves nothing, 503 if the
    issuer cannot be asked for its keys.
    """
    if not isinstance(token, str) or not 0 < len(token) <= _LONGEST:
        raise bad_request("`token` has to be the issuer's token, a text of at most 16 KiB.")
    try:
        header = jwt.get_unverified_header(token)
        issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
    except jwt.PyJWTError as error:
        raise bad_request(f"This is no JSON web token: {error}.") from None
    algorithm, kid = header.get("alg"), header.get("kid")
    if algorithm not in ALGORITHMS:
        raise unauthorized(f"Tokens signed with {algorithm!r} prove nothing here: use {ALGORITHMS[0]}.")
    if not isinstance(issuer, str) or issuer not in issuers:
        raise unauthorized(f"The issuer {issuer!r} is configured for no publisher of this hub.")
    if not isinstance(kid, str):
        raise unauthorized("The token does not say which key signed it.")
    key = keys.find(issuer, kid)
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=list(ALGORITHMS),
            audience=audience,
            issuer=issuer,
            leeway=LEEWAY,
            options={"require": _REQUIRED, "strict_aud": True, "enforce_minimum_key_length": True},
        )
    except jwt.InvalidAudienceError:
        raise unauthorized(
            f"The token was made for another audience than {audience!r}: ask the issuer for one for this hub."
        ) from None
    except jwt.PyJWTError as error:
        raise unauthorized(f"The issuer's token is not valid: {error}.") from None
    if not claims["jti"] or int(claims["exp"]) - int(claims["iat"]) > _LONGEST_LIFE:
        raise unauthorized("The issuer's token has no id, or is valid for longer than a day.")
    return claims


def expiry(claims: dict[str, Any]) -> datetime:
    """When verified claims end for good, in UTC without a zone, as the database keeps dates."""
    return datetime.fromtimestamp(int(claims["exp"]) + LEEWAY, timezone.utc).replace(tzinfo=None)
