"""`khub serve` and `khub registry` as commands, and what a crash leaves behind."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from khub_process import Hub, StartHub, khub, khub_command, khub_environment


def test_serve_when_started_then_one_line_says_where_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    process = subprocess.Popen(
        khub_command("serve", "--data", data, "--port", "0"),
        env=khub_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(f"Kernel Hub serves {data} at http://127.0.0.1:")
    assert httpx.get(f"{line.split()[-1]}/healthz").text == "ok"
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "", "")


def test_serve_when_the_port_is_taken_then_one_line_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = khub("serve", "--data", tmp_path / "data", "--port", str(port))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (30, "", 1)
    assert f"port {port}" in done.stderr and "--port" in done.stderr


def test_serve_when_the_folder_is_served_already_then_both_serve_it(
    start_hub: StartHub, tmp_path: Path
) -> None:
    first, second = start_hub(tmp_path / "data"), start_hub(tmp_path / "data")
    owner = {"Authorization": f"Bearer {first.token('acme')}"}
    httpx.post(f"{first.url}/api/repos/create", headers=owner, json={"name": "k", "organization": "acme"})
    made = _commit(second, owner, {"a.txt": b"one"})
    assert httpx.get(f"{first.url}/api/models/acme/k").json()["sha"] == made["commitOid"]
    assert (first.stop(), second.stop()) == (0, 0)


@pytest.mark.parametrize("kind", ["file", "other database", "newer"])
def test_serve_when_the_data_folder_is_not_ours_then_one_line_says_so(tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    if kind == "file":
        data.write_text("not a folder")
    elif kind == "other database":
        data.mkdir()
        (data / "registry.sqlite").write_text("not a database, but long enough to be read as one" * 10)
    else:
        assert khub("registry", "token", "list", "--data", data).returncode == 0
        subprocess.run(
            ["sqlite3", data / "registry.sqlite", "UPDATE alembic_version SET version_num = 9999"], check=True
        )
    done = khub("serve", "--data", data, "--port", "0")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (30, "", 1), done.stderr
    assert str(data) in done.stderr


def test_token_create_when_json_then_it_is_one_object(tmp_path: Path) -> None:
    made = khub("registry", "token", "create", "--data", tmp_path / "d", "--org", "acme", "--write", "--json")
    assert json.loads(made.stdout).items() >= {"org": "acme", "scope": "write"}.items()


def test_token_create_when_the_organization_cannot_be_named_so_then_usage_error(tmp_path: Path) -> None:
    done = khub("registry", "token", "create", "--data", tmp_path / "d", "--org", "a/b", "--write")
    assert (done.returncode, done.stdout) == (2, "") and "'a/b'" in done.stderr


@pytest.mark.parametrize("command", [["serve"], ["registry"], ["registry", "token", "create"]])
def test_help_when_asked_then_it_shows_examples(command: list[str]) -> None:
    done = khub(*command, "--help")
    assert done.returncode == 0 and "example" in done.stdout


def test_restart_when_the_server_was_killed_then_what_it_confirmed_is_there(
    start_hub: StartHub, tmp_path: Path
) -> None:
    first = start_hub(tmp_path / "data")
    owner = {"Authorization": f"Bearer {first.token('acme')}"}
    httpx.post(f"{first.url}/api/repos/create", headers=owner, json={"name": "k", "organization": "acme"})
    done = _commit(first, owner, {"a.txt": b"one"})
    first.stop(signal.SIGKILL)

    second = start_hub(tmp_path / "data")
    assert httpx.get(f"{second.url}/api/models/acme/k").json()["sha"] == done["commitOid"]
    assert httpx.get(f"{second.url}/acme/k/resolve/main/a.txt").content == b"one"
    assert second.stop() == 0


@pytest.mark.parametrize("stored", [1, 20, 41])
def test_restart_when_killed_during_an_upload_then_the_old_or_the_new_commit_is_whole(
    start_hub: StartHub, tmp_path: Path, stored: int
) -> None:
    """Kill -9 while the files are sent, while they are stored, and around the commit itself."""
    first = start_hub(tmp_path / "data")
    owner = {"Authorization": f"Bearer {first.token('acme')}"}
    httpx.post(f"{first.url}/api/repos/create", headers=owner, json={"name": "k", "organization": "acme"})
    old = {f"{n}.bin": b"old" * 1000 for n in range(40)}
    new = {f"{n}.bin": b"new" * 50_000 + bytes([n]) for n in range(40)}
    head = _commit(first, owner, old)["commitOid"]

    sent: dict[str, str] = {}

    def upload() -> None:
        with suppress(httpx.HTTPError):  # the server is killed under it
            sent.update(_commit(first, owner, new))

    thread = threading.Thread(target=upload)
    thread.start()
    blobs = tmp_path / "data" / "blobs"
    while thread.is_alive() and len(list(blobs.iterdir())) < stored:  # one old blob, then forty new ones
        time.sleep(0.001)
    first.stop(signal.SIGKILL)
    thread.join()

    second = start_hub(tmp_path / "data")
    with httpx.Client(base_url=second.url) as web:
        now = web.get("/api/models/acme/k").json()["sha"]
        listed = [entry["path"] for entry in web.get("/api/models/acme/k/tree/main").json()]
        got = {path: web.get(f"/acme/k/resolve/main/{path}").content for path in listed}
    assert got == (old if now == head else new)
    if sent:
        assert now == sent["commitOid"]
    assert list((tmp_path / "data" / "tmp").iterdir()) == []
    assert _commit(second, owner, {"after.txt": b"works"})["commitOid"] != now
    second.stop()


def _commit(hub: Hub, headers: dict[str, str], files: dict[str, bytes]) -> dict[str, str]:
    lines = [json.dumps({"key": "header", "value": {"summary": "test"}})]
    for path, content in files.items():
        value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
        lines.append(json.dumps({"key": "file", "value": value}))
    answer = httpx.post(
        f"{hub.url}/api/models/acme/k/commit/main", content="\n".join(lines), headers=headers, timeout=60
    )
    assert answer.status_code == 200, answer.text
    made: dict[str, str] = answer.json()
    return made
