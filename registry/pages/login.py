"""Signing in with a token, and out again."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..auth import COOKIE, check_csrf, log_in, log_out, session, set_cookie
from ..errors import RequestError, forbidden
from .forms import read_form
from .negotiate import local_path, same_origin
from .render import page

HOME = "/-/admin"


def login(request: Request) -> Response:
    """The form; who is signed in already goes on."""
    target = local_path(request.query_params.get("next", HOME))
    if not session(request).anonymous:
        return RedirectResponse(target, 303)
    return page(request, "login.html", target=target, problem="", secret=True)


async def signed_in(request: Request) -> Response:
    """Exchange the form's token for a cookie. A form of another site signs nobody in."""
    require_own_form(request)
    fields = await read_form(request)
    target = local_path(fields.get("next", HOME))

    def exchange() -> Response:
        try:
            cookie, until = log_in(request, fields.get("token", ""))
        except RequestError as error:
            return page(
                request, "login.html", error.status, target=target, problem=error.message, secret=True
            )
        response = RedirectResponse(target, 303)
        set_cookie(request, response, cookie, until)
        return response

    return await run_in_threadpool(exchange)


async def signed_out(request: Request) -> Response:
    """End this browser's login."""
    check_csrf(request, (await read_form(request)).get("csrf"))
    await run_in_threadpool(log_out, request)
    response = RedirectResponse("/", 303)
    response.delete_cookie(COOKIE, path="/")
    return response


def require_own_form(request: Request) -> None:
    """Raises RequestError 403 if another site's page sent this form."""
    if not same_origin(request):
        raise forbidden("This form was sent from another site: open it on this hub and send it from there")
