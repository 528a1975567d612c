"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Sequence
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .errors import RequestError
from .http import gone, read_body, unless_gone
from .schema import Several, Strict, Token
from .served import Served


class EmbeddingBody(Strict):
    """POST /v1/embeddings."""

    model: str
    input: str | Several[str] | Several[Token] | Several[Several[Token]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


async def embeddings(request: Request) -> Response:
    """Texts as vectors of length 1."""
    served: Served = request.app.state.served
    body = await read_body(request, EmbeddingBody, served.options.max_body)
    served.check_name(body.model)
    if body.dimensions not in (None, served.hidden_size):
        text = f"This model's vectors have {served.hidden_size} dimensions, not {body.dimensions}."
        raise RequestError(400, text, param="dimensions")
    prompts = await served.prompts(body.input, "input")
    found = served.embed(prompts)
    try:
        vectors = await unless_gone(request.receive, found.cancel, found)
    except asyncio.CancelledError:
        if found.cancelled():
            return gone()
        raise
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    tokens = sum(map(len, prompts))
    used = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": used})


def _written(vector: Sequence[float], form: str | None) -> Any:
    if form == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
    return list(vector)
