"""Which route a request came to, told to the middlewares around the router: the address as it stands in the table.

Routes as labels keep the number of series bounded, whatever addresses strangers try.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

NONE = "none"  # no route: an unknown address, or refused before one was looked up
_KEY = "khub_route"


def named(routes: Iterable[Route]) -> list[Route]:
    """The same routes; each tells its name before it answers."""
    made = list(routes)
    for route in made:
        route.app = _Named(route.app, re.sub(r":\w+}", "}", route.path))
    return made


def route_of(scope: Scope) -> str:
    """The route that a request came to, once it was answered; `scope["state"]` was there from the start."""
    return str(scope["state"].get(_KEY, NONE))


class _Named:
    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app = app
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})[_KEY] = self._name
        await self._app(scope, receive, send)
