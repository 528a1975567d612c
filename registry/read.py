"""The reading half of the Hub's protocol: information, references, trees and files.

Handlers are plain functions: Starlette runs them in threads, so the disk never stops the event loop.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .access import fetch, repo_info, revision_of
from .content import BINARY, content_response
from .downloads import recent
from .errors import bad_request, entry_not_found, unavailable
from .http import flag, json_body, next_page, number, param, query, read_body, service
from .listing import Listed, describe
from .mirrored import as_listed
from .names import check_path
from .tree import Entry, lfs_pointer

PAGE = 1000


def healthz(_request: Request) -> Response:
    """The server accepts requests."""
    return PlainTextResponse("ok")


def agent_harnesses(_request: Request) -> Response:
    """Clients ask which environment variables name the program that drives them: none that matter here."""
    return JSONResponse({"standardEnvVars": [], "harnesses": {}})


def info(request: Request) -> Response:
    """A repository at a revision, without its files: clients list those as a tree."""
    revision = revision_of(request)
    store = service(request).store
    with store.read() as session:
        counted = recent(session, [revision.repo_id])
    found = Listed(store.repo(revision.repo), revision.commit, revision.date)
    return JSONResponse(describe(found, counted.get(revision.repo_id, 0)))


def refs(request: Request) -> Response:
    """Branches and tags; pull requests for those who ask for them."""
    found = service(request).store.refs(repo_info(request).repo)
    kinds = {
        kind: [
            {"name": ref.name, "ref": ref.ref, "targetCommit": ref.commit}
            for ref in found
            if ref.ref.startswith(f"refs/{prefix}/")
        ]
        for kind, prefix in (("branches", "heads"), ("tags", "tags"), ("pullRequests", "pr"))
    }
    if not flag(request, "include_prs"):
        del kinds["pullRequests"]
    return JSONResponse({**kinds, "converts": []})


def tree(request: Request) -> Response:
    """A folder's entries by path, in pages of at most 1,000; the next page's address is in `Link`."""
    revision = revision_of(request)
    folder = param(request, "path").strip("/") if "path" in request.path_params else ""
    store = service(request).store
    if folder and getattr(store.entry(revision, check_path(folder)), "type", None) != "directory":
        raise entry_not_found(f"{revision.repo} at {revision.commit} has no folder {folder!r}.")
    recursive = flag(request, "recursive")
    limit = max(number(request, "limit", default=PAGE, highest=PAGE), 1)
    after = query(request, "cursor")
    entries = store.list_tree(revision, folder, recursive, after, limit + 1)
    headers = {"X-Repo-Commit": revision.commit}
    if len(entries) > limit:
        entries = entries[:limit]
        headers |= next_page(request, entries[-1].path)
    entries = as_listed(store, entries)
    return JSONResponse([_describe(entry) for entry in entries], headers=headers)


async def paths_info(request: Request) -> Response:
    """The entries among the paths asked for; what does not exist is left out."""
    if request.headers.get("content-type", "").startswith("application/json"):
        paths = (await json_body(request)).get("paths")
    else:
        paths = parse_qs((await read_body(request)).decode("ascii", "replace")).get("paths", [])
    if not isinstance(paths, list) or len(paths) > PAGE:
        raise bad_request(f"`paths` has to be a list of at most {PAGE} paths.")

    def find() -> list[Entry]:
        wanted = [path for path in paths if path]  # some clients ask for the root as ""
        for path in wanted:
            check_path(path)
        store = service(request).store
        return as_listed(store, store.entries_at(revision_of(request), wanted))

    return JSONResponse([_describe(entry) for entry in await run_in_threadpool(find)])


def resolve(request: Request) -> Response:
    """A file's content, whole or in ranges; the commit and the file's id are in the headers."""
    revision = revision_of(request)
    fetch(request, revision)
    path = param(request, "path")
    entry = service(request).store.entry(revision, check_path(path))
    if entry is None or entry.file is None:
        raise entry_not_found(f"{revision.repo} at {revision.commit} has no file {path!r}.")
    file = entry.file
    (listed,) = as_listed(service(request).store, [entry])
    etag = listed.file.sha256 if listed.file is not None and file.lfs else file.oid
    headers = {
        "X-Repo-Commit": revision.commit,
        "ETag": f'"{etag}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2], safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(file.size)}
    if request.method == "GET":
        service(request).downloads.fetched(revision.repo_id, path, request.headers.get("range"))
    here = service(request)
    if here.mirror is not None:
        if request.method == "HEAD" and here.blobs.size(file.sha256) is None:  # asks for no content
            return Response(headers={**headers, "Content-Length": str(file.size)}, media_type=BINARY)
        file = here.mirror.content(revision, path, file)
    try:
        return content_response(request, here.blobs, file.sha256, file.size, headers, redirect=here.redirect)
    except FileNotFoundError:
        raise unavailable(f"The content of {path!r} in {revision.repo} is not here.") from None


def _describe(entry: Entry) -> dict[str, Any]:
    described: dict[str, Any] = {"type": entry.type, "path": entry.path, "oid": entry.oid, "size": 0}
    if entry.file is not None:
        described["size"] = entry.file.size
        if entry.file.lfs:
            pointer = lfs_pointer(entry.file.sha256, entry.file.size)
            described["lfs"] = {
                "oid": entry.file.sha256,
                "size": entry.file.size,
                "pointerSize": len(pointer),
            }
    return described
