"""GET /v1/models, /health, and what the page shows of the server."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .served import Served


async def models(request: Request) -> Response:
    """The one model, as OpenAI lists its own; Anthropic's client reads the same list."""
    served: Served = request.app.state.served
    return JSONResponse(
        {
            "object": "list",
            "data": [_model(served)],
            "has_more": False,
            "first_id": served.options.name,
            "last_id": served.options.name,
        }
    )


async def model(request: Request) -> Response:
    """The model by its name. Raises RequestError 404."""
    served: Served = request.app.state.served
    served.check_name(request.path_params["name"])
    return JSONResponse(_model(served))


async def health(request: Request) -> Response:
    """200, or 503 with the reason: send requests elsewhere."""
    reason = None
    if request.app.state.drain.begun:
        reason = "The server is stopping."
    elif request.app.state.served.worker.broken:
        reason = "The engine has failed: restart the server."
    answer = {"status": "unavailable", "reason": reason} if reason else {"status": "ok"}
    return JSONResponse(answer, 503 if reason else 200, {"Cache-Control": "no-store"})


async def about(request: Request) -> Response:
    """What is served and with which kernels."""
    served: Served = request.app.state.served
    return JSONResponse(
        {
            "model": served.options.name,
            "chat": served.chats,
            "limit": served.limit,
            "kernels": [asdict(binding) for binding in served.bindings],
        }
    )


def _model(served: Served) -> dict[str, Any]:
    name = served.options.name
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "kernel-hub",
        "max_model_len": served.limit,
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(served.created, timezone.utc).isoformat().replace("+00:00", "Z"),
    }
