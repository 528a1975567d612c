"""The writing half of the Hub's protocol: repositories, branches, tags and commits.

A commit's content arrives as JSON lines and may be gigabytes: it goes to a temporary file first, then line
by line into the blob store, and only then, in one transaction, into the metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from mmap import ACCESS_READ, mmap
from typing import Any, BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from . import pulls
from .accounts.limits import check_announced
from .accounts.may import Action
from .auth import note
from .commit_body import not_here, read_commit
from .errors import RequestError, bad_request, conflict
from .http import flag, json_body, kind_of, param, repo_of, repo_url, service, writer
from .names import RepoName, check_org, check_path, check_ref_name, check_repo_name
from .ownership import wants_private
from .possession import linkable
from .store import MAIN, Store
from .tree import Add, Operation

_MOST = 1000  # files in a preupload request; clients send 256


async def validate_yaml(request: Request) -> Response:
    """Clients have a README's metadata checked before a commit; any metadata is welcome here."""
    await json_body(request)
    return JSONResponse({"errors": [], "warnings": []})


async def create_repo(request: Request) -> Response:
    """Create a repository; a name that exists answers 409 with its address."""
    body = await json_body(request)
    kind, repo = _named_repo(body)
    private = bool(wants_private(body))
    url = repo_url(request, kind, repo)

    def create() -> None:
        author = writer(request, repo.org, repo.name, Action.CREATE).name
        if not service(request).store.create_repo(repo, author, private=private):
            raise conflict(
                f"The repository {repo} exists already: upload to it, or delete it first.", url=url
            )

    await run_in_threadpool(create)
    return JSONResponse({"url": url, "id": str(repo), "name": str(repo)})


async def delete_repo(request: Request) -> Response:
    """Delete a repository with all of its commits."""
    _, repo = _named_repo(await json_body(request))

    def remove() -> None:
        writer(request, repo.org, repo.name, Action.MANAGE)
        service(request).store.delete_repo(repo)

    await run_in_threadpool(remove)
    return JSONResponse({})


def _named_repo(body: dict[str, Any]) -> tuple[str, RepoName]:
    """The URL's word for the type, and the repository, that a body names."""
    kind = body.get("type") or "model"
    if kind not in ("kernel", "model"):
        raise bad_request(f"This hub holds kernels, not repositories of type {kind!r}: say 'kernel'.")
    if not body.get("organization"):
        raise bad_request(f"Name the organization as well: 'ORG/{body.get('name')}'.")
    return f"{kind}s", RepoName(check_org(body["organization"]), check_repo_name(body.get("name")))


async def create_branch(request: Request) -> Response:
    """Create a branch at `startingPoint`, or at the head of `main`."""
    start = (await json_body(request)).get("startingPoint") or MAIN

    def create(repo: RepoName) -> None:
        service(request).store.create_branch(repo, param(request, "branch"), str(start))

    return await _change(request, create)


async def delete_branch(request: Request) -> Response:
    """Delete a branch other than `main`."""
    return await _change(
        request, lambda repo: service(request).store.delete_branch(repo, param(request, "branch"))
    )


async def create_tag(request: Request) -> Response:
    """Tag the revision in the address with the name in the body."""
    tag = (await json_body(request)).get("tag")

    def create(repo: RepoName) -> None:
        service(request).store.create_tag(repo, check_ref_name(tag), param(request, "revision"))

    return await _change(request, create)


async def delete_tag(request: Request) -> Response:
    """Delete the tag that stands in the revision's place."""
    return await _change(
        request, lambda repo: service(request).store.delete_tag(repo, param(request, "revision"))
    )


async def _change(request: Request, change: Callable[[RepoName], None]) -> Response:
    def checked() -> None:
        repo = repo_of(request)
        writer(request, repo.org)
        change(repo)

    await run_in_threadpool(checked)
    return JSONResponse({})


async def preupload(request: Request) -> Response:
    """How each file is to come: always inside the commit; with the id of what is at its path today.

    Clients with Xet installed would send an "lfs" file to a Xet server, which this registry is not.
    """
    files = (await json_body(request)).get("files")
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise bad_request("`files` has to be a list of {path, size, sample}.")
    if len(files) > _MOST:
        raise bad_request(f"One request may name {_MOST} files: ask for the rest in another.")

    def describe() -> list[dict[str, Any]]:
        repo = repo_of(request)
        writer(request, repo.org)
        store = service(request).store
        paths = [check_path(file.get("path")) for file in files]
        check_announced(store, repo.org, zip(paths, (file.get("size") for file in files), strict=True))
        present = {
            entry.path: entry.oid
            for entry in store.entries_at(store.resolve(repo, param(request, "revision")), paths)
        }
        return [
            {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": present.get(path)}
            for path in paths
        ]

    return JSONResponse({"files": await run_in_threadpool(describe)})


async def commit(request: Request) -> Response:
    """Apply the operations in the body's JSON lines to a branch."""
    repo, branch = repo_of(request), param(request, "revision")
    as_pull = flag(request, "create_pr")
    author = await run_in_threadpool(writer, request, repo.org)
    here = service(request)

    def check() -> None:  # fail before the upload, not after it
        here.store.resolve(repo, branch)
        if branch.startswith("refs/pr/"):
            pulls.require_open(here.store, repo, int(branch.removeprefix("refs/pr/")))

    def finish(body: BinaryIO) -> tuple[int | None, str]:
        body.flush()
        mapped = mmap(body.fileno(), 0, access=ACCESS_READ) if body.tell() else b""
        header, operations = read_commit(mapped, here.blobs)
        _check_digests(here.store, repo, operations)
        here.blobs.sync()
        make = pulls.open_pull if as_pull else pulls.add_commit
        return make(
            here.store,
            repo,
            branch,
            operations,
            message=header.message,
            author=author.name,
            parent=header.parent,
        )

    await run_in_threadpool(check)
    with here.blobs.temporary() as (_, body):
        await receive(request, body, here.limits.upload_bytes)
        num, oid = await run_in_threadpool(finish, body)
    note(request, commit=oid)
    page = repo_url(request, kind_of(request), repo)
    pull = None if num is None else f"{page}/discussions/{num}"
    return JSONResponse(
        {"success": True, "commitOid": oid, "commitUrl": f"{page}/commit/{oid}", "pullRequestUrl": pull}
    )


def _check_digests(store: Store, repo: RepoName, operations: Sequence[Operation]) -> None:
    """Raises RequestError 400 for a file that is named by a digest which the repository may not hold."""
    linked = {op.file.sha256: op.path for op in operations if isinstance(op, Add) and op.file.lfs}
    if linked:
        repo_id = store.repo(repo).repo_id
        with store.read() as session:
            allowed = linkable(session, repo_id, linked)
        for sha256, path in linked.items():
            if sha256 not in allowed:
                raise not_here(path, sha256)


async def receive(request: Request, file: BinaryIO, limit: int) -> None:
    """Write the request's body to `file`, without blocking the event loop and in little memory.

    Raises RequestError 413 as soon as there are, or are announced, more than `limit` bytes.
    """
    left = limit - int(request.headers.get("content-length", 0))
    too_large = RequestError(
        413,
        f"This upload has more than the {limit} bytes that are allowed here: send less at a time.",
        headers={"Connection": "close"},
    )
    if left < 0:
        raise too_large
    left = limit
    async for chunk in request.stream():
        left -= len(chunk)
        if left < 0:
            raise too_large
        await run_in_threadpool(file.write, chunk)
