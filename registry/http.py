"""What every route shares: the service behind it, and the names in its URL.

Routes see percent-encoded paths (`edge.Edge`), so an encoded slash stays part of a revision or a path.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from starlette.requests import Request

from .accounts.identity import Identity
from .accounts.may import Action, RepoFacts
from .auth import Seen, authorize
from .blobs import BlobStore
from .downloads import Downloads
from .edge import Limits
from .errors import RequestError, bad_request
from .mirror import PullThrough
from .mirrored import refuse_change
from .names import RepoName, check_text
from .oidc.keys import IssuerKeys
from .store import Store

MAX_BODY_BYTES = 16 << 20


@dataclass(frozen=True)
class Service:
    """The parts a request needs.

    `upload_key` signs upload addresses, for every process on one database. With `redirect`, large files are
    fetched from the storage itself where it is not a folder. `mirror`, if any, brings what is not here.
    """

    store: Store
    blobs: BlobStore
    upload_key: bytes = field(repr=False)
    redirect: bool = False
    limits: Limits = field(default_factory=Limits)
    downloads: Downloads = field(default_factory=Downloads)
    seen: Seen = field(default_factory=Seen)
    issuers: IssuerKeys = field(default_factory=IssuerKeys)
    mirror: PullThrough | None = None


def service(request: Request) -> Service:
    """The service the application was made with."""
    found: Service = request.app.state.service
    return found


def param(request: Request, name: str) -> str:
    """A part of the URL, decoded. Raises RequestError 400 if it is not UTF-8 or has a NUL."""
    try:
        return check_text(unquote(request.path_params[name], errors="strict"))
    except UnicodeDecodeError:
        raise bad_request(f"The {name} in this address is not percent-encoded UTF-8.") from None


def query(request: Request, name: str) -> str:
    """A query parameter, "" if it is missing. Raises RequestError 400 if it has a NUL."""
    return check_text(request.query_params.get(name, ""))


def flag(request: Request, name: str) -> bool:
    """Whether a query parameter says yes, in any of the spellings that clients use."""
    return query(request, name).lower() in ("1", "true")


def number(request: Request, name: str, *, default: int, highest: int) -> int:
    """A query parameter between 0 and `highest`; what is no number is the default, as on the Hub."""
    asked = query(request, name)
    return min(int(asked[:18]), highest) if asked.isascii() and asked.isdigit() else default


def repo_of(request: Request) -> RepoName:
    """The repository the URL names."""
    return RepoName(param(request, "org"), param(request, "name"))


def writer(request: Request, org: str, name: str | None = None, action: Action = Action.WRITE) -> Identity:
    """Who sent the request, allowed to change `org/name`; without `name`, what the address names.

    Raises RequestError 401 or 403, the latter also for a copy of an upstream's repository.
    """
    if name is None and {"org", "name"} <= request.path_params.keys() and param(request, "org") == org:
        name = param(request, "name")
    identity = authorize(request, action, RepoFacts(org, name))
    if name is not None and action is Action.WRITE:
        with service(request).store.read() as session:
            refuse_change(session, RepoName(org, name))
    return identity


def base_url(request: Request) -> str:
    """The address the client used for this server, without a final slash."""
    return str(request.base_url).rstrip("/")


def kind_of(request: Request) -> str:
    """The URL's word for the repository's type, `kernels` or `models`; without one it is a model."""
    return str(request.path_params.get("kind", "models"))


def repo_url(request: Request, kind: str, repo: RepoName) -> str:
    """The repository's page, spelled as the client spells its type: models have no prefix."""
    prefix = "" if kind == "models" else f"{kind}/"
    return f"{base_url(request)}/{prefix}{quote(str(repo))}"


async def read_body(request: Request) -> bytes:
    """The request's whole body. Raises RequestError 413 if it is not small."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RequestError(
                413, f"This request has more than {MAX_BODY_BYTES} bytes: send less at a time."
            )
    return bytes(body)


async def json_body(request: Request) -> dict[str, Any]:
    """The request's JSON object; an empty body is an empty object. Raises RequestError 400 or 413."""
    body = parse_json(await read_body(request) or b"{}")
    _check_texts(body)
    return body


def _check_texts(value: object) -> None:
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, dict):
        _check_texts([*value, *value.values()])
    elif isinstance(value, list):
        for item in value:
            _check_texts(item)


def parse_json(text: bytes) -> dict[str, Any]:
    """A JSON object. Raises RequestError 400, also where a key is there twice: parsers differ in which counts."""
    try:
        value = json.loads(text, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise bad_request("The body of this request has to be JSON objects, with no key twice.")
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def next_page(request: Request, cursor: str) -> dict[str, str]:
    """The header that leads to the page beginning at `cursor`."""
    return {"Link": f'<{request.url.include_query_params(cursor=cursor)}>; rel="next"'}
