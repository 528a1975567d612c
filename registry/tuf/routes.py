"""Addresses of the TUF repository.

GET  /tuf/metadata/<file>          what any TUF client asks for: timestamp.json, 3.root.json, 7.snapshot.json, …
GET  /tuf/bundle?namespace=&root=  all of that for one organization and one moment, in one answer
GET  /tuf/targets/<path>           a redirect to index.json at the commit that its target names
POST /tuf/targets/<org>            a publisher's next version of their role
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from tuf.api.metadata import Metadata, Targets

from hub_loader.manifest import INDEX_NAME
from hub_loader.trust.tuf_names import BUNDLE_URL, METADATA_URL, PUBLISH_URL, parse_target, role_of

from ..auth import identity_of
from ..errors import bad_request, entry_not_found
from ..http import param, read_body, writer
from ..names import check_org
from .hub_files import lack_of
from .repository import TufRepository
from .roles import lifetimes_of
from .upload import check_size, read_claim

logger = logging.getLogger(__name__)
_FILE = re.compile(r"(?:(\d{1,9})\.)?(.+)\.json", re.DOTALL)
_PREFIXED = re.compile(r"(.+/)([0-9a-f]{64})\.index\.json", re.DOTALL)
_REFRESH_S = 60.0


def routes() -> list[Route]:
    """What `create_app` adds to its routes."""
    return [
        Route(METADATA_URL + "{file}", metadata),
        Route(BUNDLE_URL, bundle),
        Route(PUBLISH_URL + "{org}", publish, methods=["POST"]),
        Route(PUBLISH_URL + "{path:path}", target),
    ]


def metadata(request: Request) -> Response:
    """One file of metadata, as it was signed. Versions never change, so they may be cached for ever."""
    match = _FILE.fullmatch(param(request, "file"))
    if match is None:
        raise entry_not_found("TUF metadata is named like timestamp.json or 3.root.json.")
    version = None if match[1] is None else int(match[1])
    data = _repository(request).file(match[2], version)
    cache = "no-cache" if version is None else "public, max-age=31536000, immutable"
    return Response(data, media_type="application/json", headers={"Cache-Control": cache})


def bundle(request: Request) -> Response:
    """{"files": {name: text}}: every root after `root`, and the current metadata down to one organization's."""
    org = request.query_params.get("namespace") or None
    since = request.query_params.get("root", "0")
    if not (since.isascii() and since.isdigit() and len(since) < 10):
        raise bad_request(f"root={since!r} is not the number of a version.")
    found = _repository(request).bundle(org and check_org(org), int(since))
    return JSONResponse({"files": found}, headers={"Cache-Control": "no-cache"})


def target(request: Request) -> Response:
    """Where the index.json of a target is; TUF clients ask for it with its hash before the name."""
    path = param(request, "path")
    prefixed = _PREFIXED.fullmatch(path)
    found = parse_target(f"{prefixed[1]}{INDEX_NAME}" if prefixed else path)
    if found is None:
        raise entry_not_found(f"{path!r} is no target: they are named org/name/v1/{INDEX_NAME}.")
    data = _repository(request).file(role_of(found.org), None)
    file = Metadata[Targets].from_bytes(data).signed.targets.get(str(found))
    if file is None or (prefixed and file.hashes["sha256"] != prefixed[2]):
        raise entry_not_found(f"{path!r} is no target of the current metadata.")
    commit = read_claim(found.org, str(found), file).commit
    return RedirectResponse(f"/kernels/{quote(found.repo_id)}/resolve/{commit}/{INDEX_NAME}", 302)


async def publish(request: Request) -> Response:
    """Take the next version of an organization's role.

    It needs the signature, and a token that may write to each repository of which it says something new.
    """
    org = check_org(param(request, "org"))
    await run_in_threadpool(identity_of, request)
    data = await read_body(request)
    check_size(data)

    def finish() -> int:
        repository = _repository(request)
        names: set[str | None] = {*repository.touched(org, data)}
        for name in names or {None}:
            writer(request, org, name)
        return repository.publish(org, data, lack_of)

    return JSONResponse({"version": await run_in_threadpool(finish)})


@asynccontextmanager
async def kept_fresh(repository: TufRepository) -> AsyncIterator[None]:
    """Sign timestamp and snapshot again before they expire, for as long as the server runs."""
    task = asyncio.create_task(_keep_fresh(repository, await _refresh(repository)))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _keep_fresh(repository: TufRepository, pause: float) -> None:
    while True:
        await asyncio.sleep(pause)
        pause = await _refresh(repository)


async def _refresh(repository: TufRepository) -> float:
    """Sign again what is due; seconds until the next look."""
    try:
        await run_in_threadpool(repository.refresh)
        offline = await run_in_threadpool(repository.offline)
    except (
        Exception
    ) as error:  # readers go on until the timestamp expires; the next look may find the cause gone
        logger.error("TUF metadata cannot be signed again: %s", error)
        return _REFRESH_S
    return _REFRESH_S if offline is None else min(_REFRESH_S, lifetimes_of(offline.root.signed).timestamp / 4)


def _repository(request: Request) -> TufRepository:
    found: TufRepository = request.app.state.tuf
    return found
