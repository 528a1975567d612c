"""The application: its routes, what every request goes through, and how failures are answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ..engine import LLM
from .bodies import Bodies
from .chat import chat
from .completions import completions
from .drain import Drain, Draining
from .embeddings import embeddings
from .errors import RequestError, answer_to, style_of
from .guard import Keys
from .http import gone
from .messages import count_tokens, messages
from .metrics import metrics
from .models import about, health, model, models
from .options import Options
from .pages import routes as page_routes
from .served import Served
from .tracing import Traces, open_tracing

log = logging.getLogger(__name__)
Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(llm: LLM, options: Options) -> Starlette:
    """The server of one model; its engine's thread runs while the application does.

    Raises:
        UsageError, MissingExtraError: traces are asked for and cannot be sent.
    """
    served = Served(llm, options)
    drain = Drain(options.grace)
    tracing = open_tracing()
    middleware = [
        Middleware(Draining, drain=drain),
        Middleware(Keys, keys=options.keys),
        Middleware(Bodies, most=options.max_bodies),
    ]
    if tracing is not None:
        middleware.insert(0, Middleware(Traces, provider=tracing, model=options.name))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        served.worker.start()
        yield
        await served.worker.stop()
        if tracing is not None:
            await asyncio.to_thread(tracing.shutdown)  # sends what waits

    app = Starlette(
        routes=[
            Route("/v1/completions", answering(completions), methods=["POST"]),
            Route("/v1/chat/completions", answering(chat), methods=["POST"]),
            Route("/v1/embeddings", answering(embeddings), methods=["POST"]),
            Route("/v1/messages", answering(messages), methods=["POST"]),
            Route("/v1/messages/count_tokens", answering(count_tokens), methods=["POST"]),
            Route("/v1/models", answering(models)),
            Route("/v1/models/{name:path}", answering(model)),
            Route("/about", answering(about)),
            Route("/health", health),
            Route("/metrics", answering(metrics)),
            *page_routes(),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _unknown, Exception: _failed},
        lifespan=lifespan,
    )
    app.state.served = served
    app.state.drain = drain
    return app


def answering(endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose foreseen errors are answered in its API's own form."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return gone()
        except Exception as error:
            foreseen = answer_to(error)
            if foreseen is None:
                raise
            request.app.state.served.metrics.refused(foreseen.status)
            return foreseen.response(style_of(request.url.path))

    return answer


async def _unknown(request: Request, error: Exception) -> Response:
    """No such route, or not by this method."""
    if not isinstance(error, HTTPException):
        raise error
    text = f"{request.method} {request.url.path} is nothing that this server answers."
    answer = RequestError(error.status_code, text, headers=error.headers)
    return answer.response(style_of(request.url.path))


async def _failed(request: Request, error: Exception) -> Response:
    """Nobody foresaw it; the traceback is in the log."""
    answer = RequestError(500, "This server failed on the request: see its log.")
    return answer.response(style_of(request.url.path))
