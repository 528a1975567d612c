"""Git LFS uploads (batch, PUT, verify), for clients that send content beside the commit.

The upload address needs no token, as with the Hub's: it is signed for one content and for one hour.
Source: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .accounts.limits import check_announced
from .errors import bad_request, entry_not_found, forbidden, not_implemented
from .http import json_body, kind_of, param, repo_of, repo_url, service, writer
from .names import check_sha256
from .store import MAIN
from .write import receive

_LIFETIME = 3600


async def batch(request: Request) -> Response:
    """Where to PUT each object; an object without `actions` is here already."""
    body = await json_body(request)
    if body.get("operation") != "upload":
        raise not_implemented("Only uploads go through LFS here: download from the /resolve/ addresses.")
    if body.get("hash_algo", "sha256") != "sha256":
        raise bad_request("LFS objects are named by their SHA-256 here.")
    objects = body.get("objects")
    if not isinstance(objects, list) or not all(isinstance(item, dict) for item in objects):
        raise bad_request("`objects` has to be a list of {oid, size}.")

    def answer() -> list[dict[str, Any]]:
        repo = repo_of(request)
        writer(request, repo.org)
        service(request).store.resolve(repo, MAIN)
        check_announced(
            service(request).store, repo.org, ((item.get("oid"), item.get("size")) for item in objects)
        )
        return [_upload(request, check_sha256(item.get("oid")), item.get("size")) for item in objects]

    answered = await run_in_threadpool(answer)
    media_type = "application/vnd.git-lfs+json"
    return JSONResponse({"transfer": "basic", "objects": answered}, media_type=media_type)


def _upload(request: Request, oid: str, size: Any) -> dict[str, Any]:
    limit = service(request).limits.upload_bytes
    if not isinstance(size, int) or not 0 <= size <= limit:
        raise bad_request(f"The size {size!r} of {oid} is not a number of bytes up to {limit}.")
    described: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
    if service(request).blobs.keep(oid) == size:
        return described
    root = f"{repo_url(request, kind_of(request), repo_of(request))}.git/info/lfs/objects"
    until = int(time.time()) + _LIFETIME
    query = urlencode({"size": size, "until": until, "signature": _sign(request, oid, size, until)})
    described["actions"] = {"upload": {"href": f"{root}/{oid}?{query}"}, "verify": {"href": f"{root}/verify"}}
    return described


def _sign(request: Request, oid: str, size: int, until: int) -> str:
    signed = f"{repo_of(request)} {oid} {size} {until}".encode()
    return hmac.new(service(request).upload_key, signed, hashlib.sha256).hexdigest()


async def upload(request: Request) -> Response:
    """Receive one object at its signed address and keep it if it is what the address says."""
    oid = check_sha256(param(request, "oid"))
    query = request.query_params
    try:
        size, until = int(query["size"]), int(query["until"])
    except (KeyError, ValueError):
        raise bad_request("This is not an upload address from the LFS batch request.") from None
    signature = _sign(request, oid, size, until)
    if not hmac.compare_digest(signature, query.get("signature", "")) or time.time() > until:
        raise forbidden("This upload address is not valid, or not any more: ask the LFS batch request again")
    blobs = service(request).blobs
    with blobs.temporary() as (path, file):
        await receive(request, file, size)
        await run_in_threadpool(blobs.adopt, path, file, oid, size)
    return Response()


async def verify(request: Request) -> Response:
    """Whether an object arrived."""
    body = await json_body(request)
    oid = check_sha256(body.get("oid"))

    def find() -> int | None:
        writer(request, repo_of(request).org)
        return service(request).blobs.size(oid)

    if await run_in_threadpool(find) != body.get("size"):
        raise entry_not_found(f"The object {oid} of {body.get('size')} bytes is not here: upload it again.")
    return Response()
