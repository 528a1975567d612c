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
from .possession import linkable, record_upload
from .write import receive

_LIFETIME = 3600
_MOST = 1000


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
    if len(objects) > _MOST:
        raise bad_request(f"One request may name {_MOST} objects: ask for the rest in another.")

    def answer() -> list[dict[str, Any]]:
        repo = repo_of(request)
        writer(request, repo.org)
        digests = {check_sha256(item.get("oid")) for item in objects}
        here = _here(request, digests)
        announced = ((item.get("oid"), item.get("size")) for item in objects)
        check_announced(service(request).store, repo.org, announced)
        return [_upload(request, item["oid"], item.get("size"), item["oid"] in here) for item in objects]

    answered = await run_in_threadpool(answer)
    media_type = "application/vnd.git-lfs+json"
    return JSONResponse({"transfer": "basic", "objects": answered}, media_type=media_type)


def _here(request: Request, digests: set[str]) -> set[str]:
    """Those of the contents that are here and that the repository may have. Raises RequestError 404."""
    store = service(request).store
    repo_id = store.repo(repo_of(request)).repo_id
    with store.read() as session:
        return linkable(session, repo_id, digests)


def _upload(request: Request, oid: str, size: Any, here: bool) -> dict[str, Any]:
    limit = service(request).limits.upload_bytes
    if not isinstance(size, int) or not 0 <= size <= limit:
        raise bad_request(f"The size {size!r} of {oid} is not a number of bytes up to {limit}.")
    described: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
    if here and service(request).blobs.keep(oid) == size:
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
    if (
        not hmac.compare_digest(signature.encode(), query.get("signature", "").encode())
        or time.time() > until
    ):
        raise forbidden("This upload address is not valid, or not any more: ask the LFS batch request again")
    blobs, store = service(request).blobs, service(request).store
    repo_id = (await run_in_threadpool(store.repo, repo_of(request))).repo_id
    with blobs.temporary() as (path, file):
        await receive(request, file, size)
        await run_in_threadpool(blobs.adopt, path, file, oid, size)
    await run_in_threadpool(record_upload, store, repo_id, oid)
    return Response()


async def verify(request: Request) -> Response:
    """Whether an object arrived."""
    body = await json_body(request)
    oid = check_sha256(body.get("oid"))

    def find() -> int | None:
        writer(request, repo_of(request).org)
        return service(request).blobs.size(oid) if oid in _here(request, {oid}) else None

    if await run_in_threadpool(find) != body.get("size"):
        raise entry_not_found(f"The object {oid} of {body.get('size')} bytes is not here: upload it again.")
    return Response()
