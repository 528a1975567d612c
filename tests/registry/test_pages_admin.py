"""Signing in and the admin pages: who sees and changes what, and what other sites cannot make a browser do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest
from khub_process import Hub, khub

HTML = {"Accept": "text/html"}


@dataclass
class Person:
    """A browser that is signed in, and the token it signed in with."""

    web: httpx.Client
    token: str

    def csrf(self, path: str = "/-/admin") -> str:
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', self.web.get(path).text)
        assert found
        return found[1]

    def send(self, path: str, **fields: str) -> httpx.Response:
        return self.web.post(path, data={"csrf": self.csrf(), **fields})


def command(hub: Hub, *arguments: str) -> str:
    done = khub("registry", *arguments, "--data", hub.data)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sign_in(hub: Hub) -> Iterator[Callable[[str], Person]]:
    clients: list[httpx.Client] = []

    def start(token: str) -> Person:
        clients.append(httpx.Client(base_url=hub.url, headers=HTML))
        got = clients[-1].post("/-/login", data={"token": token})
        assert got.status_code == 303, got.text
        return Person(clients[-1], token)

    yield start
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def operator(hub: Hub, sign_in: Callable[[str], Person]) -> Person:
    command(hub, "user", "add", "admin-ada", "--operator", "--full-name", "<script>alert(1)</script>")
    return sign_in(command(hub, "token", "create", "--user", "admin-ada", "--scope", "admin"))


@pytest.fixture(scope="module")
def owner(hub: Hub, operator: Person, sign_in: Callable[[str], Person]) -> Person:
    """An owner of the organization `mine`; `theirs` is another's."""
    hub.token("mine"), hub.token("theirs")
    command(hub, "user", "add", "admin-otto")
    command(hub, "member", "add", "--org", "mine", "--user", "admin-otto", "--role", "owner")
    return sign_in(command(hub, "token", "create", "--user", "admin-otto", "--scope", "admin"))


def test_admin_page_without_a_login_leads_to_the_form(hub: Hub) -> None:
    got = httpx.get(f"{hub.url}/-/admin", headers=HTML)
    assert (got.status_code, got.headers["location"]) == (303, "/-/login")
    form = httpx.get(f"{hub.url}/-/login", headers=HTML)
    assert form.status_code == 200
    assert form.headers["cache-control"] == "no-store"
    assert 'type="password"' in form.text


def test_cookie_of_a_login_is_no_token_and_kept_from_scripts_and_foreign_forms(
    hub: Hub, owner: Person
) -> None:
    got = httpx.post(f"{hub.url}/-/login", data={"token": owner.token}, headers=HTML)
    cookie = got.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert owner.token not in cookie
    value = cookie.partition("=")[2].partition(";")[0]
    bearer = {"Authorization": f"Bearer {value}"}
    assert httpx.get(f"{hub.url}/api/whoami-v2", headers=bearer).status_code == 401
    with_cookie = httpx.post(
        f"{hub.url}/api/repos/create",
        json={"name": "x", "organization": "mine", "type": "kernel"},
        headers={"Cookie": f"khub_login={value}"},
    )
    assert with_cookie.status_code == 401


@pytest.mark.parametrize("token", ["", "khub_wrong", "<script>alert(1)</script>", "x" * 70_000])
def test_wrong_token_signs_nobody_in(hub: Hub, token: str) -> None:
    got = httpx.post(f"{hub.url}/-/login", data={"token": token}, headers=HTML)
    assert got.status_code in (401, 413)
    assert "set-cookie" not in got.headers
    assert "<script>alert" not in got.text


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}])
def test_form_of_another_site_signs_nobody_in(hub: Hub, owner: Person, headers: dict[str, str]) -> None:
    got = httpx.post(f"{hub.url}/-/login", data={"token": owner.token}, headers=HTML | headers)
    assert got.status_code == 403
    assert "set-cookie" not in got.headers


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"]
)
def test_login_leads_to_no_other_host(hub: Hub, owner: Person, target: str) -> None:
    got = httpx.post(f"{hub.url}/-/login", data={"token": owner.token, "next": target}, headers=HTML)
    assert (got.status_code, got.headers["location"]) == (303, "/")
    again = owner.web.get("/-/login", params={"next": target})
    assert again.headers["location"] == "/"


def test_operator_sees_all_organizations_users_and_the_log(operator: Person, owner: Person) -> None:
    got = operator.web.get("/-/admin")
    assert got.headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in got.headers["content-security-policy"]
    for text in ("/-/admin/orgs/mine", "/-/admin/orgs/theirs", "admin-otto", "Audit log", "member.set"):
        assert text in got.text
    assert "<script>alert" not in got.text


def test_owner_sees_and_changes_the_own_organization_and_no_other(operator: Person, owner: Person) -> None:
    shown = owner.web.get("/-/admin").text
    assert "/-/admin/orgs/mine" in shown
    assert "theirs" not in shown
    assert "Audit log" not in shown
    assert owner.web.get("/-/admin/orgs/mine").status_code == 200
    assert owner.web.get("/-/admin/orgs/theirs").status_code == 403
    for path, fields in (
        ("/-/admin/orgs/theirs/tokens", {"scope": "write"}),
        ("/-/admin/orgs/theirs/members", {"user": "admin-otto", "role": "owner"}),
        ("/-/admin/orgs/theirs/trust", {"trusted": "yes"}),
        ("/-/admin/orgs/mine/trust", {"trusted": "yes"}),
    ):
        assert owner.send(path, **fields).status_code == 403, path
    assert operator.web.get("/-/admin/orgs/nobody").status_code == 404


def test_stranger_sees_and_changes_nothing(hub: Hub, owner: Person) -> None:
    with httpx.Client(base_url=hub.url, headers=HTML) as web:
        assert web.get("/-/admin/orgs/mine").status_code == 401
        for path in ("/-/admin/orgs/mine/tokens", "/-/admin/tokens/1/revoke", "/-/logout"):
            assert web.post(path, data={"csrf": owner.csrf(), "scope": "write"}).status_code == 403


def test_token_of_scope_write_manages_nothing(hub: Hub, sign_in: Callable[[str], Person]) -> None:
    person = sign_in(hub.token("mine"))
    assert "You manage none" in person.web.get("/-/admin").text
    assert person.web.get("/-/admin/orgs/mine").status_code == 403
    assert person.send("/-/admin/orgs/mine/tokens", scope="write").status_code == 403


@pytest.mark.parametrize("csrf", ["", "0" * 64, "é"])
def test_change_without_the_mark_of_this_login_is_refused(operator: Person, owner: Person, csrf: str) -> None:
    for path in (
        "/-/admin/orgs/mine/tokens",
        "/-/admin/orgs/mine/members",
        "/-/admin/orgs/mine/trust",
        "/-/admin/tokens/1/revoke",
        "/-/logout",
    ):
        fields = {"scope": "read", "user": "admin-otto", "role": "none", "trusted": "yes"}
        assert operator.web.post(path, data={**fields, "csrf": csrf}).status_code == 403
        assert operator.web.post(path, data={**fields, "csrf": owner.csrf()}).status_code == 403
        assert operator.web.post(path, data=fields).status_code == 403
    assert operator.web.get("/-/admin").status_code == 200


def test_token_that_is_made_is_shown_once_works_and_is_revoked(hub: Hub, owner: Person) -> None:
    made = owner.send("/-/admin/orgs/mine/tokens", scope="write", days="1", label="<b>ci</b>")
    assert made.status_code == 200
    assert made.headers["cache-control"] == "no-store"
    (secret,) = set(re.findall(r"khub_[A-Za-z0-9_-]{43}", made.text))
    bearer = {"Authorization": f"Bearer {secret}"}
    assert httpx.get(f"{hub.url}/api/whoami-v2", headers=bearer).json()["name"] == "mine"
    page = owner.web.get("/-/admin/orgs/mine").text
    assert secret not in page
    assert "&lt;b&gt;ci" in page
    (number,) = re.findall(rf"Revoke<span class=\"hidden\"> {secret[:9]}, token (\d+)<", page)
    assert owner.send(f"/-/admin/tokens/{number}/revoke").headers["location"] == "/-/admin/orgs/mine"
    assert httpx.get(f"{hub.url}/api/whoami-v2", headers=bearer).status_code == 401
    log = owner.web.get("/-/admin/orgs/mine").text
    assert log.count("<td>token.create</td>") >= 2
    assert "<td>token.revoke</td>" in log
    assert "<td>user:admin-otto</td>" in log


def test_token_of_a_user_or_another_organization_is_not_an_owners_to_revoke(
    hub: Hub, operator: Person, owner: Person
) -> None:
    tokens = re.findall(r"/-/admin/tokens/(\d+)/revoke", operator.web.get("/-/admin/orgs/theirs").text)
    users = re.findall(r"/-/admin/tokens/(\d+)/revoke", operator.web.get("/-/admin").text)
    assert tokens
    assert users
    for number in (*tokens, *users, "999999", "x", "9" * 5000):
        assert owner.send(f"/-/admin/tokens/{number}/revoke").status_code == 403
    assert operator.send("/-/admin/tokens/999999/revoke").status_code == 404


def test_role_is_given_and_taken_away(hub: Hub, operator: Person, owner: Person) -> None:
    command(hub, "user", "add", "admin-mia")
    assert owner.send("/-/admin/orgs/mine/members", user="admin-mia", role="writer").status_code == 303
    assert "admin-mia" in owner.web.get("/-/admin/orgs/mine").text
    for user, role in (("nobody-here", "writer"), ("admin-mia", "emperor"), ("", "")):
        assert owner.send("/-/admin/orgs/mine/members", user=user, role=role).status_code == 400
    assert owner.send("/-/admin/orgs/mine/members", user="admin-mia", role="none").status_code == 303
    assert "admin-mia <span" not in owner.web.get("/-/admin/orgs/mine").text


def test_operator_decides_whom_the_hub_calls_a_trusted_publisher(
    hub: Hub, operator: Person, owner: Person
) -> None:
    def trusted() -> bool:
        overview = httpx.get(f"{hub.url}/api/organizations/mine/overview").json()
        return bool(overview["trustedKernelPublisher"])

    assert not trusted()
    assert operator.send("/-/admin/orgs/mine/trust", trusted="yes").status_code == 303
    assert trusted()
    assert operator.send("/-/admin/orgs/mine/trust", trusted="no").status_code == 303
    assert not trusted()


def test_signing_out_ends_the_login_wherever_its_cookie_is(
    hub: Hub, owner: Person, sign_in: Callable[[str], Person]
) -> None:
    person = sign_in(owner.token)
    cookie = person.web.cookies["khub_login"]
    assert person.send("/-/logout").headers["location"] == "/"
    assert "khub_login" not in person.web.cookies
    stolen = httpx.get(f"{hub.url}/-/admin", headers=HTML | {"Cookie": f"khub_login={cookie}"})
    assert stolen.status_code == 303
