"""What a browser sends in a form."""

from __future__ import annotations

from urllib.parse import parse_qs

from starlette.requests import Request

from ..errors import RequestError
from ..names import check_text

MAX_BYTES = 64 << 10


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form, the first value of each. Raises RequestError 413 or 400."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise RequestError(413, f"This form has more than {MAX_BYTES >> 10} KiB: send less.")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise RequestError(
            400, "This form cannot be read: open its page again and send it from there."
        ) from None
    return {check_text(name): check_text(values[0]) for name, values in fields.items()}
