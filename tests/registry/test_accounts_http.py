"""Users, roles and tokens on the wire: what each may do, what the log says of it, and how whoami answers."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi
from khub_process import Hub
from registry_command import new_token, registry, registry_json, run


@pytest.fixture(scope="module")
def web(hub: Hub) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hub.url) as client:
        yield client


@pytest.fixture(scope="module")
def people(hub: Hub) -> dict[str, str]:
    """Write tokens of a reader, a writer and an owner of `team`, and of somebody from elsewhere."""
    registry(hub.data, "org", "add", "team")
    made = {}
    for name in ("reader", "writer", "owner", "stranger"):
        user = f"team-{name}"
        registry(hub.data, "user", "add", user)
        if name != "stranger":
            registry(hub.data, "member", "add", "--org", "team", "--user", user, "--role", name)
        made[name] = new_token(hub.data, "--user", user, "--scope", "write")
    return made


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def create(web: httpx.Client, token: str, repo: str) -> httpx.Response:
    org, _, name = repo.partition("/")
    body = {"name": name, "organization": org, "type": "kernel"}
    return web.post("/api/repos/create", json=body, headers=bearer(token))


def delete(web: httpx.Client, token: str, repo: str) -> httpx.Response:
    org, _, name = repo.partition("/")
    return web.request(
        "DELETE", "/api/repos/delete", json={"name": name, "organization": org}, headers=bearer(token)
    )


def commit(web: httpx.Client, token: str, repo: str, files: dict[str, bytes]) -> httpx.Response:
    lines: list[object] = [{"key": "header", "value": {"summary": "test"}}]
    for path, content in files.items():
        value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
        lines.append({"key": "file", "value": value})
    body = "".join(json.dumps(line) + "\n" for line in lines)
    return web.post(f"/api/kernels/{repo}/commit/main", content=body, headers=bearer(token))


def test_members_do_what_their_role_says_and_commits_carry_their_names(
    web: httpx.Client, people: dict[str, str]
) -> None:
    for name, status in (("stranger", 403), ("reader", 403), ("writer", 200)):
        assert create(web, people[name], "team/relu").status_code == status
    for name, status in (("stranger", 403), ("reader", 403), ("writer", 200), ("owner", 200)):
        assert commit(web, people[name], "team/relu", {name: b"x"}).status_code == status
    assert "takes the role owner" in delete(web, people["writer"], "team/relu").json()["error"]
    assert delete(web, people["owner"], "team/relu").status_code == 200


def test_role_when_changed_then_tokens_that_exist_follow_at_once(hub: Hub, web: httpx.Client) -> None:
    registry(hub.data, "user", "add", "mover")
    token = new_token(hub.data, "--user", "mover", "--write")
    registry(hub.data, "org", "add", "moved")
    assert create(web, token, "moved/a").status_code == 403
    registry(hub.data, "member", "add", "--org", "moved", "--user", "mover", "--role", "writer")
    assert create(web, token, "moved/a").status_code == 200
    registry(hub.data, "member", "add", "--org", "moved", "--user", "mover", "--role", "reader")
    assert create(web, token, "moved/b").status_code == 403
    registry(hub.data, "member", "remove", "--org", "moved", "--user", "mover")
    assert "is no member there" in create(web, token, "moved/b").json()["error"]
    registry(hub.data, "user", "remove", "mover")
    assert create(web, token, "moved/b").status_code == 401


def test_token_that_is_limited_reaches_nothing_else(hub: Hub, web: httpx.Client) -> None:
    registry(hub.data, "user", "add", "both")
    for org in ("left", "right"):
        registry(hub.data, "org", "add", org)
        registry(hub.data, "member", "add", "--org", org, "--user", "both", "--role", "owner")
    of_org = new_token(hub.data, "--user", "both", "--write", "--limit", "left")
    of_repo = new_token(hub.data, "--user", "both", "--write", "--limit", "left/relu")
    of_service = new_token(hub.data, "--org", "left", "--write", "--limit", "left/relu")
    assert create(web, of_org, "right/relu").status_code == 403
    assert create(web, of_org, "left/relu").status_code == 200
    assert create(web, of_org, "left/gelu").status_code == 200
    for token in (of_repo, of_service):
        assert commit(web, token, "left/relu", {"a": b"1"}).status_code == 200
        assert "limited to 'left/relu'" in commit(web, token, "left/gelu", {"a": b"1"}).json()["error"]
        assert create(web, token, "left/new").status_code == 403
        batch = "/kernels/left/gelu.git/info/lfs/objects/batch"
        asked = web.post(batch, json={"operation": "upload", "objects": []}, headers=bearer(token))
        assert asked.status_code == 403
        assert web.get("/api/kernels/left/gelu", headers=bearer(token)).status_code == 200  # it is public


def test_token_when_expired_or_revoked_then_the_refusal_says_so(hub: Hub, web: httpx.Client) -> None:
    made = registry_json(hub.data, "token", "create", "--org", "brittle", "--write", "--expires", "30m")
    assert create(web, made["token"], "brittle/a").status_code == 200
    with sqlite3.connect(hub.data / "registry.sqlite") as database:  # half an hour goes by
        database.execute("UPDATE tokens SET expires_at = created_at WHERE id = ?", (made["id"],))
    database.close()
    refused = create(web, made["token"], "brittle/b")
    assert refused.status_code == 401 and "expired at" in refused.json()["error"]
    assert web.get("/api/kernels/brittle/a", headers=bearer(made["token"])).status_code == 200
    other = registry_json(hub.data, "token", "create", "--org", "brittle", "--write")
    registry(hub.data, "token", "revoke", str(other["id"]))
    assert "is revoked" in create(web, other["token"], "brittle/b").json()["error"]
    states = {row["id"]: row["state"] for row in registry_json(hub.data, "token", "list", "--all")}
    assert (states[made["id"]], states[other["id"]]) == ("expired", "revoked")
    shown = {row["id"] for row in registry_json(hub.data, "token", "list")}
    assert not shown & {made["id"], other["id"]}


def test_token_when_used_then_the_list_tells_the_hour_and_no_more(hub: Hub, web: httpx.Client) -> None:
    made = registry_json(hub.data, "token", "create", "--org", "hourly")

    def used() -> str | None:
        rows = registry_json(hub.data, "token", "list", "--org", "hourly")
        return next(row["last_used_at"] for row in rows if row["id"] == made["id"])

    assert used() is None
    web.get("/api/whoami-v2", headers=bearer(made["token"]))
    at = used()
    assert at is not None and at.endswith(":00:00Z")


def test_audit_when_clients_write_then_it_says_who_what_and_from_where(
    hub: Hub, web: httpx.Client, people: dict[str, str]
) -> None:
    create(web, people["owner"], "team/logged")
    done = commit(web, people["writer"], "team/logged", {"a": b"1"}).json()["commitOid"]
    web.post("/api/kernels/team/logged/branch/v1", json={}, headers=bearer(people["writer"]))
    delete(web, people["reader"], "team/logged")
    events = [
        event
        for event in registry_json(hub.data, "audit", "--org", "team")
        if event["subject"] == "team/logged"
    ]
    seen = [(event["actor"], event["action"], event["status"]) for event in reversed(events)]
    assert seen == [
        ("user:team-owner", "repo.create", 200),
        ("user:team-writer", "repo.commit", 200),
        ("user:team-writer", "branch.create", 200),
        ("user:team-reader", "repo.delete", 403),
    ]
    assert {event["address"] for event in events} == {"127.0.0.1"}
    assert events[2]["detail"] == {"commit": done, "revision": "main"}
    assert events[1]["detail"] == {"branch": "v1"}
    for token in people.values():
        assert token not in registry(hub.data, "audit", "--limit", "10000", "--json")


def test_audit_when_strangers_try_then_they_cannot_fill_it(hub: Hub, web: httpx.Client) -> None:
    before = registry_json(hub.data, "audit", "--limit", "1")[0]["id"]
    for token in ("made-up", "khub_"):
        assert create(web, token, "team/x").status_code == 401
    assert registry_json(hub.data, "audit", "--limit", "1")[0]["id"] == before


def test_audit_when_asked_over_the_wire_then_owners_see_their_organization_and_operators_all(
    hub: Hub, web: httpx.Client, people: dict[str, str]
) -> None:
    registry(hub.data, "user", "add", "root-of-it", "--operator")
    operator = new_token(hub.data, "--user", "root-of-it", "--scope", "admin")
    owner = new_token(hub.data, "--user", "team-owner", "--scope", "admin")
    assert web.get("/api/audit", headers=bearer(operator)).status_code == 200
    assert web.get("/api/audit", headers=bearer(owner)).status_code == 403
    page = web.get("/api/audit?org=team&limit=2", headers=bearer(owner)).json()
    assert len(page) == 2 and all(event["subject"].split("/")[0] == "team" for event in page)
    older = web.get(f"/api/audit?org=team&limit=2&before={page[-1]['id']}", headers=bearer(owner)).json()
    assert older[0]["id"] < page[-1]["id"]
    for token, status in ((people["owner"], 403), (people["stranger"], 403), ("made-up", 401)):
        assert web.get("/api/audit?org=team", headers=bearer(token)).status_code == status
    for wrong in ("limit=x", "limit=-1", "before=1e3", "actor=%00", "action=a%0Ab"):
        assert web.get(f"/api/audit?org=team&{wrong}", headers=bearer(owner)).status_code == 400


def test_operator_manages_everywhere_and_publishes_nowhere(hub: Hub, web: httpx.Client) -> None:
    registry(hub.data, "user", "add", "janitor", "--operator")
    admin = new_token(hub.data, "--user", "janitor", "--scope", "admin")
    writer = new_token(hub.data, "--user", "janitor", "--write")
    owner = new_token(hub.data, "--org", "tidy", "--write")
    create(web, owner, "tidy/old")
    assert commit(web, admin, "tidy/old", {"a": b"1"}).status_code == 403
    assert create(web, admin, "tidy/new").status_code == 403
    assert delete(web, writer, "tidy/old").status_code == 403
    assert delete(web, admin, "tidy/old").status_code == 200


def test_members_are_listed_for_members_alone(web: httpx.Client, people: dict[str, str]) -> None:
    got = web.get("/api/organizations/team/members", headers=bearer(people["reader"])).json()
    assert {row["user"]: row["role"] for row in got} == {
        "team-reader": "reader",
        "team-writer": "writer",
        "team-owner": "owner",
    }
    assert web.get("/api/organizations/team/members", headers=bearer(people["stranger"])).status_code == 404
    assert web.get("/api/organizations/team/members").status_code == 404


def test_organization_when_trusted_then_clients_are_told(hub: Hub, web: httpx.Client) -> None:
    registry(hub.data, "org", "add", "told")

    def trusted() -> bool:
        return bool(web.get("/api/organizations/told/overview").json()["trustedKernelPublisher"])

    assert not trusted()
    registry(hub.data, "org", "trust", "told")
    assert trusted()
    registry(hub.data, "org", "trust", "told", "--off")
    assert not trusted()


def test_quota_when_exceeded_then_the_commit_is_refused_and_content_counts_once(
    hub: Hub, web: httpx.Client
) -> None:
    token = new_token(hub.data, "--org", "small", "--write")
    for name in ("a", "b"):
        create(web, token, f"small/{name}")
    registry(hub.data, "org", "quota", "small", "--bytes", "100K", "--max-file", "60K", "--max-files", "3")
    half = os.urandom(50_000)
    assert commit(web, token, "small/a", {"x.so": half}).status_code == 200
    assert commit(web, token, "small/b", {"x.so": half, "y.so": half}).status_code == 200
    assert commit(web, token, "small/a", {"big.so": os.urandom(70_000)}).status_code == 413
    assert commit(web, token, "small/a", {f"{n}": b"x" for n in range(4)}).status_code == 413
    assert commit(web, token, "small/a", {"z.so": os.urandom(50_000)}).status_code == 200
    refused = commit(web, token, "small/b", {"w.so": os.urandom(50_000)})
    assert (refused.status_code, refused.headers["x-error-code"]) == (403, "QuotaExceeded")
    assert "small" in refused.json()["error"] and "w.so" not in web.get("/api/kernels/small/b/tree/main").text
    assert registry_json(hub.data, "org", "quota", "small")["used_bytes"] == 100_000
    assert delete(web, token, "small/a").status_code == 200
    assert commit(web, token, "small/b", {"w.so": os.urandom(50_000)}).status_code == 200


def test_quota_when_a_repository_moves_in_then_it_counts_there(hub: Hub, web: httpx.Client) -> None:
    registry(hub.data, "user", "add", "mover-in")
    for org in ("wide", "tight"):
        registry(hub.data, "org", "add", org)
        registry(hub.data, "member", "add", "--org", org, "--user", "mover-in", "--role", "owner")
    registry(hub.data, "org", "quota", "tight", "--bytes", "10K")
    token = new_token(hub.data, "--user", "mover-in", "--write")
    create(web, token, "wide/big")
    commit(web, token, "wide/big", {"x.so": os.urandom(20_000)})

    def move(source: str, target: str) -> httpx.Response:
        body = {"fromRepo": source, "toRepo": target, "type": "kernel"}
        return web.post("/api/repos/move", json=body, headers=bearer(token))

    refused = move("wide/big", "tight/big")
    assert (refused.status_code, refused.headers["x-error-code"]) == (403, "QuotaExceeded")
    assert move("wide/big", "wide/bigger").status_code == 200
    registry(hub.data, "org", "quota", "tight", "--bytes", "30K")
    assert move("wide/bigger", "tight/big").status_code == 200
    assert registry_json(hub.data, "org", "quota", "tight")["used_bytes"] == 20_000


def test_limits_when_a_file_is_announced_then_it_is_refused_before_it_comes(
    hub: Hub, web: httpx.Client
) -> None:
    token = new_token(hub.data, "--org", "early", "--write")
    create(web, token, "early/a")
    registry(hub.data, "org", "quota", "early", "--max-file", "1K")
    sizes = {"path": "x.so", "size": 1025, "sample": ""}, {"path": "y.so", "size": "huge", "sample": ""}
    for file, status in zip(sizes, (413, 200), strict=True):
        asked = web.post("/api/kernels/early/a/preupload/main", json={"files": [file]}, headers=bearer(token))
        assert asked.status_code == status
    batch = {"operation": "upload", "objects": [{"oid": "a" * 64, "size": 1025}]}
    asked = web.post("/kernels/early/a.git/info/lfs/objects/batch", json=batch, headers=bearer(token))
    assert (asked.status_code, asked.headers["x-error-code"]) == (413, "FileTooLarge")


def test_whoami_when_asked_by_the_stock_client_then_users_and_organizations_are_themselves(hub: Hub) -> None:
    registry(hub.data, "user", "add", "ada", "--full-name", "Ada Lovelace")
    for org, role in (("engines", "owner"), ("poets", "reader")):
        registry(hub.data, "org", "add", org)
        registry(hub.data, "member", "add", "--org", org, "--user", "ada", "--role", role)
    token = new_token(hub.data, "--user", "ada", "--write", "--label", "laptop", "--expires", "90d")
    about = HfApi(endpoint=hub.url, token=token).whoami()
    assert (about["type"], about["name"], about["fullname"]) == ("user", "ada", "Ada Lovelace")
    assert {org["name"]: org["roleInOrg"] for org in about["orgs"]} == {"engines": "admin", "poets": "read"}
    access = about["auth"]["accessToken"]
    assert (access["displayName"], access["role"]) == ("laptop", "write") and "expiresAt" in access
    service = HfApi(endpoint=hub.url, token=new_token(hub.data, "--org", "engines")).whoami()
    assert (service["type"], service["name"], service["auth"]["accessToken"]["role"]) == (
        "org",
        "engines",
        "read",
    )
    assert [org["name"] for org in service["orgs"]] == ["engines"]


@pytest.mark.slow
@pytest.mark.parametrize("whose", [("--user", "cli-user"), ("--org", "cli-org")])
def test_hf_auth_login_and_whoami_when_run_then_they_name_the_account(
    hub: Hub, tmp_path: Path, whose: tuple[str, str]
) -> None:
    if whose[0] == "--user":
        registry(hub.data, "user", "add", "cli-user")
    token = new_token(hub.data, *whose, "--write")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "NO_COLOR": "1"}

    def hf(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("hf")), "auth", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    hf("login", "--token", token)
    assert whose[1] in hf("whoami")


def test_organization_when_its_name_is_a_users_then_it_cannot_be_taken(hub: Hub) -> None:
    name = f"taken-{secrets.token_hex(3)}"
    registry(hub.data, "user", "add", name)
    code, _, error = run(hub.data, "token", "create", "--org", name, "--write")
    assert code == 2 and "is a user" in error
    code, _, error = run(hub.data, "user", "add", "team-reader")
    assert code == 2 and "is a user" in error
    registry(hub.data, "org", "add", f"{name}-org")
    code, _, error = run(hub.data, "user", "add", f"{name}-org")
    assert code == 2 and "is an organization" in error
