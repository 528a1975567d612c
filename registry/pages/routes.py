"""Which address leads to which page. The names of the protocol's own addresses come before all of these."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import RequestError
from . import admin, browse, compatibility, kernel, login, settings
from .negotiate import wants_html
from .render import page, static

_TITLES = {
    400: "This request cannot be read",
    401: "Sign in first",
    403: "Not allowed",
    404: "Not found",
    405: "Not possible here",
    413: "Too much at once",
    429: "Too many requests",
    500: "The hub failed",
    501: "Not part of this hub",
}


def routes() -> list[Route]:
    """The pages' addresses, to be tried last."""
    repo = "/kernels/{org}/{name}"
    return [
        Route("/", browse.front),
        Route("/-/static/{name}", static),
        Route("/-/login", login.login),
        Route("/-/login", login.signed_in, methods=["POST"]),
        Route("/-/logout", login.signed_out, methods=["POST"]),
        Route("/-/settings", settings.settings),
        Route("/-/settings/tokens", settings.make_token, methods=["POST"]),
        Route("/-/settings/tokens/{id}/revoke", settings.revoke_token, methods=["POST"]),
        Route("/-/admin", admin.overview),
        Route("/-/admin/tokens/{id}/revoke", admin.revoke_token, methods=["POST"]),
        Route("/-/admin/orgs/{org}", admin.organization),
        Route("/-/admin/orgs/{org}/tokens", admin.make_token, methods=["POST"]),
        Route("/-/admin/orgs/{org}/members", admin.change_member, methods=["POST"]),
        Route("/-/admin/orgs/{org}/trust", admin.change_trust, methods=["POST"]),
        Route("/kernels", browse.kernels),
        Route(repo, kernel.card),
        Route(repo + "/compatibility", compatibility.show_matrix),
        Route(repo + "/compatibility", compatibility.pasted, methods=["POST"]),
        Route(repo + "/versions", kernel.versions_page),
        Route(repo + "/provenance", kernel.provenance),
        Route(repo + "/benchmarks", kernel.benchmarks),
        Route(repo + "/tree/{revision}", kernel.tree),
        Route(repo + "/commit/{revision}", kernel.commit),
        Route("/{org}", browse.organization),
        Route("/{org}/{name}/commit/{revision}", kernel.commit),
        Route("/{org}/{name}", browse.short_address),
    ]


def error_page(request: Request, error: RequestError) -> Response:
    """A refusal as a browser or a client gets it: the same status and headers, the sentence on a page or as JSON."""
    plain = error.response()
    if not wants_html(request):
        return plain
    title = _TITLES.get(error.status, "That did not work")
    shown = page(request, "error.html", error.status, title=title, message=error.message, code=error.status)
    for name, value in plain.headers.items():
        if name.startswith(("x-error", "www-", "retry-")):
            shown.headers[name] = value
    return shown
