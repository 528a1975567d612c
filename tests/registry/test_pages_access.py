"""Private and gated kernels on the pages: who sees that they exist, and what is in them; downloads that are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from huggingface_hub import HfApi
from khub_process import Hub
from registry_command import new_token, registry, run
from seeded_hub import count_downloads, upload

HTML = {"Accept": "text/html"}
METADATA = {"id": "_it_cpu_1", "name": "it", "version": 1, "license": "", "backend": {"type": "cpu"}}
TABS = ("", "/compatibility", "/tree/v1", "/versions", "/provenance", "/benchmarks", "/commit/v1")


@pytest.fixture(scope="module")
def member(hub: Hub) -> str:
    return hub.token("secrets")


@pytest.fixture(scope="module")
def kernels(hub: Hub, member: str) -> None:
    """A private and a gated kernel whose cards and operators nobody else may read."""
    api = HfApi(endpoint=hub.url, token=member)
    for name in ("hidden-one", "gated-one"):
        files = {
            "README.md": b"A confidential sentence.",
            "build/torch-cpu/__init__.py": b"__all__ = ['secretop']",
            "build/torch-cpu/metadata.json": json.dumps(METADATA).encode(),
        }
        upload(hub, member, f"secrets/{name}", "v1", files, "confidential message")
    api.update_repo_settings("secrets/hidden-one", private=True, repo_type="model")
    api.update_repo_settings("secrets/gated-one", gated="manual", repo_type="model")


@pytest.fixture
def stranger(hub: Hub, kernels: None) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hub.url, headers=HTML) as web:
        yield web


@pytest.fixture
def insider(hub: Hub, kernels: None, member: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hub.url, headers=HTML) as web:
        assert web.post("/-/login", data={"token": member}).status_code == 303
        yield web


@pytest.fixture
def outsider(hub: Hub, kernels: None) -> Iterator[httpx.Client]:
    """Signed in, of another organization."""
    with httpx.Client(base_url=hub.url, headers=HTML) as web:
        assert web.post("/-/login", data={"token": hub.token("others")}).status_code == 303
        yield web


@pytest.mark.parametrize("who", ["stranger", "outsider"])
def test_private_kernel_is_no_kernel_to_who_may_not_see_it(who: str, request: pytest.FixtureRequest) -> None:
    web: httpx.Client = request.getfixturevalue(who)
    for tab in TABS:
        got = web.get(f"/kernels/secrets/hidden-one{tab}")
        assert got.status_code == 404, tab
        assert got.headers["x-error-code"] == "RepoNotFound"
        assert "confidential" not in got.text
    assert web.get("/secrets/hidden-one").status_code == 404
    posted = web.post("/kernels/secrets/hidden-one/compatibility", data={"environment": "{}"})
    assert posted.status_code == 404
    for path in (
        "/",
        "/kernels",
        "/secrets",
        "/kernels?q=secretop",
        "/kernels?q=confidential",
        "/kernels?q=hidden-one",
    ):
        assert "secrets/hidden-one" not in web.get(path).text.replace("</span><wbr>", ""), path


@pytest.mark.parametrize(("who", "status"), [("stranger", 401), ("outsider", 403)])
def test_gated_kernel_is_listed_and_shows_nothing_of_its_files(
    who: str, status: int, request: pytest.FixtureRequest
) -> None:
    web: httpx.Client = request.getfixturevalue(who)
    listed = web.get("/secrets").text
    assert "gated-one" in listed
    assert "Gated: ask its owners for access." in listed
    assert "confidential" not in listed
    assert "gated-one" not in web.get("/kernels?q=secretop").text
    for tab in TABS:
        got = web.get(f"/kernels/secrets/gated-one{tab}")
        assert got.status_code == status, tab
        assert "confidential" not in got.text
        assert ("/-/login?next=" in got.text) == (who == "stranger")


def test_member_who_is_signed_in_sees_private_and_gated_kernels(insider: httpx.Client) -> None:
    for name in ("hidden-one", "gated-one"):
        assert name in insider.get("/secrets").text
        assert name in insider.get("/kernels?q=secretop").text
        got = insider.get(f"/kernels/secrets/{name}")
        assert got.status_code == 200
        assert "A confidential sentence." in got.text
        assert "private" in got.headers["cache-control"]
        assert "Cookie" in got.headers["vary"]


@contextmanager
def signed_in(hub: Hub, token: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hub.url, headers=HTML, timeout=60) as web:
        assert web.post("/-/login", data={"token": token}).status_code == 303
        yield web


def user(hub: Hub, name: str) -> None:
    assert run(hub.data, "user", "add", name)[0] in (0, 2)  # another test may have made it


def seen(web: httpx.Client) -> set[str]:
    """Which of the two kernels the lists and searches show, and of which the card, files and matrix open."""
    shown = set()
    for name in ("hidden-one", "gated-one"):
        found = name in web.get("/kernels?q=secretop").text
        pages = {web.get(f"/kernels/secrets/{name}{tab}").status_code for tab in TABS[:-1]}
        assert pages == {200} if found else 200 not in pages, (name, pages)
        posted = web.post(f"/kernels/secrets/{name}/compatibility", data={"environment": "{}"})
        assert (posted.status_code == 422) == found
        shown |= {name} if found else set()
    return shown


@pytest.mark.parametrize("role", ["reader", "owner"])
def test_user_who_is_a_member_sees_both_as_long_as_he_is_one(hub: Hub, kernels: None, role: str) -> None:
    name = f"page-{role}"
    user(hub, name)
    with signed_in(hub, new_token(hub.data, "--user", name)) as web:
        assert seen(web) == set()
        registry(hub.data, "member", "add", "--org", "secrets", "--user", name, "--role", role)
        assert seen(web) == {"hidden-one", "gated-one"}
        registry(hub.data, "member", "remove", "--org", "secrets", "--user", name)
        assert seen(web) == set()


def test_reader_who_was_let_in_finds_and_opens_the_gated_kernel_and_not_the_private_one(
    hub: Hub, kernels: None, member: str
) -> None:
    user(hub, "page-guest"), user(hub, "page-waiting")
    api = HfApi(endpoint=hub.url, token=member)
    with (
        signed_in(hub, new_token(hub.data, "--user", "page-guest")) as guest,
        signed_in(hub, new_token(hub.data, "--user", "page-waiting")) as waiting,
    ):
        assert seen(guest) == set()
        api.grant_access("secrets/gated-one", "page-guest", repo_type="model")
        assert seen(guest) == {"gated-one"} and seen(waiting) == set()
        assert "A confidential sentence." in guest.get("/secrets").text
        assert "hidden-one" not in guest.get("/secrets").text
        api.cancel_access_request("secrets/gated-one", "page-guest", repo_type="model")
        assert seen(guest) == set()


def test_member_with_a_token_that_is_limited_elsewhere_sees_neither(hub: Hub, kernels: None) -> None:
    user(hub, "page-limited")
    registry(hub.data, "member", "add", "--org", "secrets", "--user", "page-limited", "--role", "owner")
    for limit, expected in (("others", set()), ("secrets/gated-one", {"gated-one"})):
        hub.token("others")
        with signed_in(hub, new_token(hub.data, "--user", "page-limited", "--limit", limit)) as web:
            assert seen(web) == expected


def test_page_that_a_member_saw_is_not_confirmed_to_a_stranger_who_names_its_tag(
    insider: httpx.Client, stranger: httpx.Client
) -> None:
    for path in ("/kernels/secrets/hidden-one", "/kernels?q=secretop"):
        tag = insider.get(path).headers["etag"]
        assert insider.get(path, headers={"If-None-Match": tag}).status_code == 304
        assert stranger.get(path, headers={"If-None-Match": tag}).status_code != 304


def test_private_kernel_and_one_that_never_was_get_the_same_answer(
    stranger: httpx.Client, outsider: httpx.Client
) -> None:
    for web in (stranger, outsider):
        for tab in TABS:
            there, never = (web.get(f"/kernels/secrets/{name}{tab}") for name in ("hidden-one", "never-was1"))
            assert there.text.replace("hidden-one", "never-was1") == never.text
            assert there.status_code == never.status_code and there.headers.keys() == never.headers.keys()


def test_login_lets_a_browser_read_pages_and_not_a_clients_addresses(hub: Hub, insider: httpx.Client) -> None:
    assert insider.get("/kernels/secrets/hidden-one/resolve/v1/README.md").status_code == 404
    assert insider.get("/api/kernels/secrets/hidden-one").status_code == 404


def test_downloads_that_were_counted_are_drawn_and_sort_the_list(hub: Hub, stranger: httpx.Client) -> None:
    token = hub.token("counted")
    for name, a_day in (("rare", 2), ("frequent", 90)):
        upload(hub, token, f"counted/{name}", "v1", {"README.md": b"x"}, "x")
        count_downloads(hub, f"counted/{name}", a_day)
    shown = stranger.get("/kernels/counted/frequent").text
    assert shown.count("<rect ") == 30
    assert "in 30 days" in shown
    listed = stranger.get("/counted?sort=downloads").text
    assert 0 < listed.index("/kernels/counted/frequent") < listed.index("/kernels/counted/rare")


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
@pytest.mark.parametrize(
    "tab", ["/kernels/{}", "/kernels/{}/tree/v1", "/api/kernels/{}", "/{}/resolve/v1/README.md"]
)
def test_private_kernel_in_another_case_is_refused_as_what_is_not_there(
    stranger: httpx.Client, tab: str, accept: str
) -> None:
    asked = [
        stranger.get(tab.format(name), headers={"Accept": accept})
        for name in ("Secrets/hidden-one", "Secrets/no-such")
    ]
    there, absent = (
        (got.status_code, got.headers["content-type"], got.text.replace("no-such", "hidden-one"))
        for got in asked
    )
    assert there == absent
    assert there[0] == 404
