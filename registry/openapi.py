"""The protocol's description in OpenAPI 3.1, made of the route table: addresses, docstrings, and the bodies below."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_STATE: Schema = {"enum": ["pending", "accepted", "rejected"]}
_TYPE: Schema = {"enum": ["kernel", "model"]}
_PRIVACY: Schema = {"visibility": {"enum": ["public", "private"]}, "private": _FLAG}


def _object(required: str = "", **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_LFS_OBJECT = _object("oid size", oid=_TEXT, size=_COUNT)
_NAME = {"name": _TEXT, "organization": _TEXT, "type": _TYPE}
# What each handler reads from a JSON body; those that are not here read none.
_BODIES: dict[str, Schema] = {
    "create_repo": _object("name organization", **_NAME, **_PRIVACY),
    "delete_repo": _object("name organization", **_NAME),
    "move_repo": _object("fromRepo toRepo", fromRepo=_TEXT, toRepo=_TEXT, type=_TYPE),
    "change_settings": _object(**_PRIVACY, gated={"enum": ["auto", "manual", False]}),
    "validate_yaml": _object(content=_TEXT, repoType=_TEXT),
    "paths_info": _object("paths", paths=_list(_TEXT), expand=_FLAG),
    "create_branch": _object(startingPoint=_TEXT),
    "create_tag": _object("tag", tag=_TEXT, message=_TEXT),
    "super_squash": _object(message=_TEXT),
    "preupload": _object(
        "files", files=_list(_object("path", path=_TEXT, size=_COUNT, sample=_TEXT)), gitIgnore=_TEXT
    ),
    "grant_access": _object("user", user=_TEXT),
    "handle_access": _object("user status", user=_TEXT, status=_STATE, rejectionReason=_TEXT),
    "create_pull": _object("title pullRequest", title=_TEXT, description=_TEXT, pullRequest=_FLAG),
    "set_pull_status": _object("status", status={"enum": ["open", "closed"]}),
    "merge_pull": _object(comment=_TEXT),
    "batch": _object(
        "operation objects",
        operation={"enum": ["upload"]},
        objects=_list(_LFS_OBJECT),
        transfers=_list(_TEXT),
        hash_algo={"const": "sha256"},
    ),
    "verify": _LFS_OBJECT,
    "make_own_token": _object(
        displayName=_TEXT,
        role={"enum": ["read", "write", "admin"]},
        limit=_TEXT,
        expiresIn=_COUNT | {"minimum": 1},
    ),
    "exchange": _object("token", token=_TEXT, repository=_TEXT, organization=_TEXT),
}
# Bodies that are kept as they come: a commit's JSON lines, an object's bytes, signed metadata.
_RAW = {
    "commit": "application/x-ndjson",
    "upload": "application/octet-stream",
    "publish": "application/octet-stream",
}
_PAGED: Schema = {"limit": _COUNT, "cursor": _TEXT}
_QUERIES: dict[str, Schema] = {
    "repos": {"search": _TEXT, "author": _TEXT, "sort": _TEXT, "direction": {"enum": [1, -1]}, **_PAGED},
    "tree": {"recursive": _FLAG, "expand": _FLAG, **_PAGED},
    "commits": {"expand[]": {"const": "formatted"}, **_PAGED},
    "refs": {"include_prs": _FLAG},
    "commit": {"create_pr": _FLAG},
    "discussions": {
        "p": _COUNT,
        "type": {"enum": ["all", "discussion", "pull_request"]},
        "status": {"enum": ["all", "open", "closed"]},
        "author": _TEXT,
    },
    "upload": {"size": _COUNT, "until": _COUNT, "signature": _TEXT},
}
_PARTS: dict[str, Schema] = {"kind": {"enum": ["kernels", "models"]}, "state": _STATE}
# Handlers that may answer this although nothing failed.
_ABSENT = {
    "no_comments": ("501", "This hub has none."),
    "create_pull": ("501", "This hub has pull requests and no other discussions."),
    "batch": ("501", "Only uploads go through LFS."),
    "audience": ("503", "The operator has not set it up."),
    "exchange": ("503", "The operator has not set it up, or the issuer does not answer."),
}
_PART = re.compile(r"\{(\w+)(?::\w+)?\}")
_REFUSAL = {
    "description": "Refused: the sentence says why and what to do; `X-Error-Code` is the Hub's word for it.",
    "headers": {"X-Error-Code": {"schema": _TEXT}, "X-Error-Message": {"schema": _TEXT}},
    "content": {"application/json": {"schema": _object("error", error=_TEXT)}},
}


def openapi(request: Request) -> Response:
    """This description."""
    return JSONResponse(description(request.app.state.protocol))


def description(routes: Iterable[BaseRoute]) -> Schema:
    """An OpenAPI document for the routes with a public handler; paths are percent-encoded in each part."""
    paths: dict[str, Schema] = {}
    seen: Counter[str] = Counter()
    for route in routes:
        if not isinstance(route, Route) or route.name.startswith("_"):
            continue
        path = _PART.sub(r"{\1}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            seen[route.name] += 1
            described = _operation(route, f"{route.name}-{seen[route.name]}")
            paths.setdefault(path, {})[method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Kernel Hub registry",
            "version": "1",
            "description": "The Hub's protocol for kernels. Everything else below /api answers 501.",
        },
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(route: Route, name: str) -> Schema:
    parts = [
        {"name": part, "in": "path", "required": True, "schema": _PARTS.get(part, _TEXT | {"minLength": 1})}
        for part in _PART.findall(route.path)
    ]
    queries = [
        {"name": key, "in": "query", "schema": schema} for key, schema in _QUERIES.get(route.name, {}).items()
    ]
    described: Schema = {
        "operationId": name,
        "summary": (inspect.getdoc(route.endpoint) or "").partition("\n")[0],
        "parameters": [*parts, *queries],
        "security": [{}, {"token": []}],
        "responses": {"200": {"description": "Done."}, "default": _REFUSAL},
    }
    if route.name in _RAW:
        described["requestBody"] = {"content": {_RAW[route.name]: {"schema": _TEXT}}}
    elif route.name in _BODIES:
        content = {"application/json": {"schema": _BODIES[route.name]}}
        described["requestBody"] = {"content": content}
    if route.name in _ABSENT:
        status, why = _ABSENT[route.name]
        described["responses"][status] = _REFUSAL | {"description": why}
    if "{kind}" in _PART.sub(r"{\1}", route.path):
        described["responses"]["307"] = {"description": "The repository has another name: the same there."}
    return described
