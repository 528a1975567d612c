"""What never reaches a log: tokens, passwords, signatures of addresses. Pure.

Nothing here logs a query or a header that holds one; this also covers texts that others wrote, such as a
database driver's error with its address in it.
"""

from __future__ import annotations

import re

_HIDDEN = "[hidden]"
_SECRETS = re.compile(
    r"""
    (?P<kept>
        \b(?:bearer|basic)\s+                              # an Authorization header
      | [?&](?:[\w.%-]*(?:signature|token|secret|password|credential|key|code)[\w.%-]*)=   # a query's value
      | ://[^/\s:@]*:(?=[^/\s@]+@)                         # an address's password
    )
    [^\s&"'@]+
    | \b(?:khub_[\w-]{20,}|(?:hf|ghp|ghs)_[A-Za-z0-9]{20,})   # tokens by how they begin
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)?   # JSON web tokens
    """,
    re.VERBOSE | re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text with what looks like a secret replaced."""
    return _SECRETS.sub(lambda found: (found["kept"] or "") + _HIDDEN, text)
