"""Tokens that users make of their own: for no more, for nowhere else and for no longer than the one they have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from khub_process import Hub
from registry_command import registry_json

from registry.clock import utc_now
from registry.models import Token
from registry.store import Store

ADDRESS = "/api/settings/tokens"


@dataclass
class Person:
    """A user, and the hub that knows them."""

    hub: Hub
    name: str

    def token(self, *options: str) -> str:
        made = registry_json(self.hub.data, "token", "create", "--user", self.name, *options)
        return str(made["token"])

    def call(self, token: str, method: str = "GET", path: str = "", **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        sent = {"json": body} if method == "POST" else {}
        return httpx.request(method, f"{self.hub.url}{ADDRESS}{path}", headers=headers, timeout=60, **sent)

    def make(self, token: str, **wish: Any) -> dict[str, Any]:
        made = self.call(token, "POST", **wish)
        assert made.status_code == 200, made.text
        return dict(made.json())

    def works(self, token: str) -> bool:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.get(f"{self.hub.url}/api/whoami-v2", headers=headers).status_code == 200

    @contextmanager
    def browser(self, token: str) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.hub.url, headers={"Accept": "text/html"}, timeout=60) as web:
            assert web.post("/-/login", data={"token": token, "next": "/-/settings"}).status_code == 303
            yield web


@pytest.fixture(scope="module")
def ada(hub: Hub) -> Person:
    """A writer of `minted`, where `minted/relu` may be."""
    registry_json(hub.data, "org", "add", "minted")
    registry_json(hub.data, "org", "add", "unminted")
    registry_json(hub.data, "user", "add", "minting-ada")
    registry_json(hub.data, "member", "add", "--org", "minted", "--user", "minting-ada", "--role", "writer")
    return Person(hub, "minting-ada")


@pytest.fixture(scope="module")
def write(ada: Person) -> str:
    return ada.token("--write")


def create(ada: Person, token: str, org: str, name: str) -> int:
    body = {"name": name, "organization": org, "type": "kernel"}
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.post(f"{ada.hub.url}/api/repos/create", json=body, headers=headers).status_code


def test_token_when_made_then_shown_once_works_as_asked_and_is_gone_when_revoked(
    ada: Person, write: str
) -> None:
    made = ada.make(write, role="write", displayName="laptop", limit="minted/relu", expiresIn=3600)
    assert (made["role"], made["limit"], made["displayName"]) == ("write", "minted/relu", "laptop")
    ends = datetime.fromisoformat(made["expiresAt"].removesuffix("Z"))
    assert timedelta(0) < ends - utc_now() <= timedelta(hours=1)
    assert create(ada, made["token"], "minted", "relu") == 200
    assert create(ada, made["token"], "minted", "gelu") == 403
    listed = ada.call(write)
    assert made["token"] not in listed.text
    (row,) = [row for row in listed.json() if row["id"] == made["id"]]
    assert row["hint"] == made["token"][:9] and row["revokedAt"] is None
    assert ada.call(write, "DELETE", f"/{made['id']}").json() == {"revoked": made["id"]}
    assert not ada.works(made["token"]) and ada.works(write)
    assert ada.call(write, "DELETE", f"/{made['id']}").status_code == 404


@pytest.mark.parametrize(
    ("options", "wish"),
    [
        ((), {"role": "write"}),
        ((), {"role": "admin"}),
        (("--write",), {"role": "admin"}),
        (("--write", "--limit", "minted"), {"role": "write", "limit": "unminted"}),
        (("--write", "--limit", "minted/relu"), {"role": "write", "limit": "minted"}),
        (("--write", "--limit", "minted/relu"), {"role": "read", "limit": "minted/gelu"}),
    ],
)
def test_token_when_more_is_asked_for_than_its_maker_may_then_refused(
    ada: Person, options: tuple[str, ...], wish: dict[str, str]
) -> None:
    maker = ada.token(*options)
    before = len(ada.call(maker).json())
    assert ada.call(maker, "POST", **wish).status_code == 403
    assert len(ada.call(maker).json()) == before


def test_token_when_its_maker_is_limited_or_ends_then_so_does_it(ada: Person) -> None:
    maker = ada.token("--write", "--limit", "minted/relu", "--expires", "1h")
    for wish in ({"role": "write"}, {"role": "write", "expiresIn": 10**8}):
        made = ada.make(maker, **wish)
        assert made["limit"] == "minted/relu"
        assert datetime.fromisoformat(made["expiresAt"].removesuffix("Z")) <= utc_now() + timedelta(hours=1)
        again = ada.make(made["token"])
        assert again["expiresAt"] <= made["expiresAt"]


def test_token_that_has_expired_or_is_revoked_makes_and_lists_none(ada: Person) -> None:
    maker = ada.token("--write", "--expires", "1h")
    made = ada.make(maker, role="write")
    store = Store(ada.hub.data)
    with store.write() as session:
        row = session.get_one(Token, made["id"])
        row.expires_at = utc_now() - timedelta(seconds=1)
    store.close()
    for method in ("GET", "POST"):
        refused = ada.call(made["token"], method)
        assert refused.status_code == 401 and "expired" in refused.json()["error"]
    own = ada.make(maker, role="write")
    assert ada.call(own["token"], "DELETE", f"/{own['id']}").status_code == 200  # itself
    assert ada.call(own["token"], "POST").status_code == 401


def test_token_of_reading_sees_and_revokes_none_that_writes_and_a_limited_one_none_beyond_its_limit(
    ada: Person, write: str
) -> None:
    number = ada.make(write, role="write")["id"]
    for weak in (ada.token(), ada.token("--write", "--limit", "minted/relu")):
        assert number not in [row["id"] for row in ada.call(weak).json()]
        assert ada.call(weak, "DELETE", f"/{number}").status_code == 404
    assert number in [row["id"] for row in ada.call(write).json() if row["revokedAt"] is None]


def test_tokens_of_others_and_of_organizations_are_out_of_reach(ada: Person, write: str) -> None:
    registry_json(ada.hub.data, "user", "add", "minting-bob")
    theirs = Person(ada.hub, "minting-bob").token("--scope", "admin")
    number = Person(ada.hub, "minting-bob").make(theirs)["id"]
    assert ada.call(write, "DELETE", f"/{number}").status_code == 404
    service = ada.hub.token("minted")
    for token in (service, ""):
        for method in ("GET", "POST"):
            assert ada.call(token, method).status_code == (403 if token else 401)
    for odd in ("0", "-1", "x", "9" * 30, "%00", "1%2F2"):
        assert ada.call(write, "DELETE", f"/{odd}").status_code in (400, 404)


NONSENSE: list[dict[str, Any]] = [
    {"role": "owner"},
    {"role": 3},
    {"limit": "a/b/c"},
    {"limit": 1},
    {"expiresIn": 0},
    {"expiresIn": True},
    {"expiresIn": 1e9},
    {"expiresIn": 10**12},
    {"displayName": ["x"]},
]


@pytest.mark.parametrize("wish", NONSENSE)
def test_token_when_asked_for_in_nonsense_then_400(ada: Person, write: str, wish: dict[str, Any]) -> None:
    assert ada.call(write, "POST", **wish).status_code == 400


def test_tokens_leave_entries_in_the_audit_log_without_their_secrets(ada: Person, write: str) -> None:
    made = ada.make(write, role="read", displayName="logged")
    ada.call(write, "DELETE", f"/{made['id']}")
    log = registry_json(ada.hub.data, "audit", "--actor", "user:minting-ada")
    mine = {event["action"] for event in log if event["detail"].get("token") == made["id"]}
    assert mine == {"token.create", "token.revoke"} and made["token"] not in str(log)


# -- the page


def csrf(web: httpx.Client) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', web.get("/-/settings").text)
    assert found
    return found[1]


def test_page_when_a_token_is_made_then_shown_once_and_revoked_by_its_button(ada: Person, write: str) -> None:
    with ada.browser(write) as web:
        fields = {"csrf": csrf(web), "scope": "read", "label": "<b>ci</b>", "days": "1", "limit": "minted"}
        page = web.post("/-/settings/tokens", data=fields)
        assert page.headers["cache-control"] == "no-store" and "<b>ci</b>" not in page.text
        secret = re.search(r"khub_[\w-]{30,}", page.text)
        assert secret and ada.works(secret[0]) and secret[0] not in web.get("/-/settings").text
        (number,) = [row["id"] for row in ada.call(write).json() if row["hint"] == secret[0][:9]]
        assert web.post(f"/-/settings/tokens/{number}/revoke", data={"csrf": csrf(web)}).status_code == 303
        assert not ada.works(secret[0])


def test_page_when_the_form_is_another_sites_then_nothing_is_made_or_revoked(ada: Person, write: str) -> None:
    number = ada.make(write)["id"]
    with ada.browser(write) as web, ada.browser(write) as other:
        before = ada.call(write).json()
        for mark in ({}, {"csrf": "0" * 64}, {"csrf": csrf(other)}):
            fields = {"scope": "read", "days": "1", **mark}
            assert web.post("/-/settings/tokens", data=fields).status_code == 403
            assert web.post(f"/-/settings/tokens/{number}/revoke", data=mark).status_code == 403
        assert web.get(f"/-/settings/tokens/{number}/revoke").status_code in (404, 405)
        cookie = {"Cookie": f"khub_login={web.cookies['khub_login']}"}
        assert httpx.post(ada.hub.url + ADDRESS, json={}, headers=cookie).status_code == 401
        assert ada.call(write).json() == before


def test_page_when_a_label_is_no_text_that_every_database_holds_then_400(ada: Person, write: str) -> None:
    with ada.browser(write) as web:
        fields = {"csrf": csrf(web), "scope": "read", "label": "a\0b", "days": "1"}
        assert web.post("/-/settings/tokens", data=fields).status_code == 400


def test_page_when_signed_in_with_less_then_offers_and_makes_no_more(ada: Person) -> None:
    with ada.browser(ada.token()) as web:
        page = web.get("/-/settings").text
        assert "<option>read</option>" in page and "<option>write</option>" not in page
        fields = {"csrf": csrf(web), "scope": "write", "days": "1"}
        refused = web.post("/-/settings/tokens", data=fields)
        assert refused.status_code == 403 and not re.search(r"khub_[\w-]{30,}", refused.text)


def test_page_without_a_login_leads_to_the_form_and_back(ada: Person, write: str) -> None:
    got = httpx.get(f"{ada.hub.url}/-/settings", headers={"Accept": "text/html"})
    assert (got.status_code, got.headers["location"]) == (303, "/-/login?next=/-/settings")
    with ada.browser(write) as web:
        assert "Your tokens" in web.get("/-/settings").text
    with ada.browser(ada.hub.token("minted")) as web:
        page = web.get("/-/settings")
        assert page.status_code == 200 and "Make a token" not in page.text
