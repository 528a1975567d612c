"""Browser logins: a cookie that no script reads, good for pages alone, ended with its token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from registry_command import new_token, registry, registry_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from registry import auth
from registry.accounts.directory import find_org
from registry.accounts.identity import Scope
from registry.accounts.tokens import NewToken, issue
from registry.app import create_app
from registry.clock import utc_now
from registry.place import Place
from registry.store import Store


async def log_in(request: Request) -> Response:
    cookie, until = auth.log_in(request, (await request.body()).decode())
    response = JSONResponse({})
    auth.set_cookie(request, response, cookie, until)
    return response


def who(request: Request) -> Response:
    identity = auth.session(request)
    return JSONResponse(
        {"name": identity.name, "scope": str(identity.scope), "form": auth.csrf_token(request)}
    )


async def form(request: Request) -> Response:
    auth.check_csrf(request, (await request.body()).decode())
    return JSONResponse({})


def log_out(request: Request) -> Response:
    auth.log_out(request)
    return JSONResponse({})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    registry(tmp_path / "data", "user", "add", "ada")
    registry(tmp_path / "data", "org", "add", "acme")
    registry(tmp_path / "data", "member", "add", "--org", "acme", "--user", "ada", "--role", "owner")
    return tmp_path / "data"


@pytest.fixture
def site(data: Path) -> Iterator[TestClient]:
    """The registry with pages that log in and out."""
    app: Starlette = create_app(Place(data))
    app.router.routes[:0] = [
        Route("/log-in", log_in, methods=["POST"]),
        Route("/who", who),
        Route("/form", form, methods=["POST"]),
        Route("/log-out", log_out, methods=["POST"]),
    ]
    with TestClient(app, base_url="https://hub.example") as client:
        yield client


def logged_in(site: TestClient, token: str) -> httpx.Response:
    answer = site.post("/log-in", content=token)
    assert answer.status_code == 200, answer.text
    return answer


def test_login_gives_a_cookie_for_pages_and_the_tokens_own_rights(site: TestClient, data: Path) -> None:
    token = new_token(data, "--user", "ada", "--write")
    cookie = logged_in(site, token).headers["set-cookie"]
    assert token not in cookie
    for word in ("HttpOnly", "Secure", "SameSite=lax", "Path=/", "Max-Age=43"):
        assert word.lower() in cookie.lower()
    assert site.get("/who").json()["name"] == "ada"
    assert site.get("/who").json()["scope"] == "write"
    assert registry_json(data, "audit", "--action", "login")[0]["actor"] == "user:ada"


def test_login_cookie_opens_no_address_of_clients(site: TestClient, data: Path) -> None:
    logged_in(site, new_token(data, "--user", "ada", "--scope", "admin"))
    create = {"name": "x", "organization": "acme", "type": "kernel"}
    assert site.post("/api/repos/create", json=create).status_code == 401
    assert site.get("/api/whoami-v2").status_code == 401
    stolen = {"Authorization": f"Bearer {site.cookies['khub_login']}"}
    assert site.get("/api/whoami-v2", headers=stolen).status_code == 401


def test_token_in_the_place_of_the_cookie_is_no_login(site: TestClient, data: Path) -> None:
    site.cookies.set("khub_login", new_token(data, "--user", "ada"))
    assert site.get("/who").json()["name"] == ""


def test_login_ends_with_its_token_and_with_logging_out(site: TestClient, data: Path) -> None:
    made = registry_json(data, "token", "create", "--user", "ada")
    logged_in(site, made["token"])
    stolen = site.cookies["khub_login"]
    site.post("/log-out")
    site.cookies.set("khub_login", stolen)
    assert site.get("/who").json()["name"] == ""
    site.cookies.clear()
    logged_in(site, made["token"])
    registry(data, "token", "revoke", str(made["id"]))
    assert site.get("/who").json()["name"] == ""
    assert site.post("/log-in", content=made["token"]).status_code == 401


@pytest.mark.parametrize("token", ["", "made-up", "khub_", "é"])
def test_login_with_what_is_no_token_is_refused(site: TestClient, token: str) -> None:
    answer = site.post("/log-in", content=token)
    assert answer.status_code == 401 and "set-cookie" not in answer.headers


def test_login_is_no_token_to_log_in_with(site: TestClient, data: Path) -> None:
    logged_in(site, new_token(data, "--user", "ada"))
    assert site.post("/log-in", content=site.cookies["khub_login"]).status_code == 401


def test_login_lasts_no_longer_than_its_token(site: TestClient, data: Path) -> None:
    cookie = logged_in(site, new_token(data, "--user", "ada", "--expires", "5m")).headers["set-cookie"]
    assert 0 < int(cookie.lower().split("max-age=")[1].split(";")[0]) <= 300


def test_form_counts_when_it_is_of_this_login(site: TestClient, data: Path) -> None:
    logged_in(site, new_token(data, "--user", "ada"))
    ours = site.get("/who").json()["form"]
    assert site.post("/form", content=ours).status_code == 200
    for theirs in ("", "x", "é", ours[:-1]):
        assert site.post("/form", content=theirs).status_code == 403
    site.cookies.clear()
    logged_in(site, new_token(data, "--user", "ada"))
    assert site.post("/form", content=ours).status_code == 403
    site.cookies.clear()
    assert site.post("/form", content=site.get("/who").json()["form"]).status_code == 403


def test_login_is_not_listed_as_a_token(site: TestClient, data: Path) -> None:
    logged_in(site, new_token(data, "--user", "ada"))
    assert len(registry_json(data, "token", "list", "--all")) == 1


def test_login_with_the_token_of_a_ci_run_is_refused(site: TestClient, data: Path) -> None:
    number = registry_json(data, "publisher", "add", "--org", "acme", "--repository", "gh/k")["id"]
    store = Store(data)
    with store.write() as session:
        org = find_org(session, "acme").id
        new = NewToken(Scope.WRITE, org_id=org, publisher_id=number)
        token, _ = issue(session, new, utc_now())
    store.close()
    answer = site.post("/log-in", content=token)
    assert answer.status_code == 403 and "set-cookie" not in answer.headers
