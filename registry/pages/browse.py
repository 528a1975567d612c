"""Finding kernels: the front page, the list of all, an organization's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..access import repo_info
from ..errors import RequestError
from ..http import param
from ..names import check_org
from .catalog import Catalog, Listed, Sort, search, sort
from .reader import reader
from .render import page

PAGE = 24
_FRONT = 6
_SORTS: dict[str, str] = {"downloads": "Most downloaded", "updated": "Last updated", "name": "Name"}


def catalog(request: Request) -> Catalog:
    """The catalog that the application was made with."""
    return cast(Catalog, request.app.state.catalog)


def front(request: Request) -> Response:
    """The front page: a search field, what is downloaded most and what changed last."""
    here = catalog(request)
    listed = here.listed(reader(request))
    return page(
        request,
        "front.html",
        popular=sort(listed, "downloads")[:_FRONT],
        recent=sort(listed, "updated")[:_FRONT],
        count=len(listed),
        orgs=len({item.repo.org for item in listed}),
        variants=sum(item.variants for item in listed),
    )


def kernels(request: Request) -> Response:
    """Every kernel, or those that a query finds, sorted, in pages."""
    query = request.query_params.get("q", "")[:200].strip()
    found = sort(catalog(request).listed(reader(request)), _sorting(request))
    return page(request, "list.html", **_paged(request, search(found, query)), query=query)


def organization(request: Request) -> Response:
    """An organization and its kernels. Raises RequestError 404."""
    org = param(request, "org")
    try:
        check_org(org)
    except RequestError:
        raise RequestError(404, f"There is nothing at {request.url.path} on this hub.") from None
    here = catalog(request)
    listed = here.listed(reader(request), org)
    if not listed and not here.org_exists(org):
        raise RequestError(404, f"No organization {org!r} on this hub: check its name.")
    return page(request, "org.html", org=org, **_paged(request, sort(listed, _sorting(request))))


def short_address(request: Request) -> Response:
    """`/{org}/{name}` leads to the kernel's page. Raises RequestError 404."""
    reader(request)
    found = repo_info(request)
    return RedirectResponse(f"/kernels/{found.repo}", 307)  # a repository that exists has a plain name


def _sorting(request: Request) -> Sort:
    asked = request.query_params.get("sort", "downloads")
    return cast(Sort, asked) if asked in _SORTS else "downloads"


def _paged(request: Request, found: Sequence[Listed]) -> dict[str, Any]:
    asked = request.query_params.get("page", "1")
    pages = max((len(found) + PAGE - 1) // PAGE, 1)
    number = min(max(int(asked), 1), pages) if asked.isascii() and asked.isdigit() and len(asked) < 7 else 1
    return {
        "found": found[(number - 1) * PAGE : number * PAGE],
        "total": len(found),
        "number": number,
        "pages": pages,
        "sorting": _sorting(request),
        "sorts": _SORTS,
    }
