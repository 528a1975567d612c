"""A mirror's copies over an air gap: what was fetched goes along, and the far hub has a copy of the same upstream."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from khub_process import ROOT, Hub, StartHub, khub, khub_environment
from registry_command import registry_json, run
from signing import sign_package, trust_key
from test_export import members, resealed

from hub_loader.errors import IntegrityError
from registry.carry_in import carry_in
from registry.names import RepoName
from registry.place import Place, open_blobs
from registry.store import Store

sys.path.insert(0, str(ROOT / "tests" / "hub_loader"))
from packages import python_package

PATH = "/kernels/acme/relu/resolve/v1/index.json"


@pytest.fixture(scope="module")
def upstream(start_hub: StartHub, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A hub with `acme/relu`, signed, in version 1, and a large file beside it."""
    from huggingface_hub import HfApi

    hub = start_hub(tmp_path_factory.mktemp("upstream") / "data")
    package = python_package(tmp_path_factory.mktemp("package"), name="relu", kernel_id="_relu_copied_1")
    sign_package(package.folder, "acme/relu")
    api = HfApi(endpoint=hub.url, token=hub.token("acme"))
    api.create_repo("acme/relu", repo_type="kernel")
    api.create_branch("acme/relu", branch="v1", repo_type="kernel")
    api.upload_folder(repo_id="acme/relu", repo_type="kernel", folder_path=package.folder, revision="v1")
    return hub


@pytest.fixture(scope="module")
def archive(start_hub: StartHub, upstream: Hub, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a mirror exports of which one file was fetched."""
    folder = tmp_path_factory.mktemp("archive")
    mirror = start_hub(folder / "mirror", "--upstream", upstream.url)
    assert status(mirror, PATH) == 200
    registry_json(mirror.data, "export", str(folder / "c.tar"), "acme/relu")
    mirror.stop()
    return (folder / "c.tar").read_bytes()


@pytest.fixture
def mirror(start_hub: StartHub, upstream: Hub, tmp_path: Path) -> Hub:
    return start_hub(tmp_path / "mirror", "--upstream", upstream.url, "--mirror-ttl", "0")


def load(hub: Hub, home: Path) -> subprocess.CompletedProcess[str]:
    code = "from hub_loader import get_kernel; print(get_kernel('acme/relu', version=1).__name__)"
    kept = {k: v for k, v in khub_environment().items() if not k.startswith(("HF_", "KERNELS_"))}
    environment = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)


def status(hub: Hub, path: str) -> int:
    return httpx.get(hub.url + path, timeout=120).status_code


@pytest.mark.slow
def test_copy_when_carried_over_then_it_loads_here_and_cannot_be_written_to(
    start_hub: StartHub, mirror: Hub, upstream: Hub, tmp_path: Path
) -> None:
    archive = tmp_path / "c.tar"
    tree = "/api/kernels/acme/relu/tree/v1?recursive=true"
    for entry in httpx.get(mirror.url + tree).json():
        if entry["type"] == "file":
            assert status(mirror, f"/kernels/acme/relu/resolve/v1/{entry['path']}") == 200
    done = registry_json(mirror.data, "export", str(archive), "acme/relu")
    assert done["repos"] == ["acme/relu"] and done["blobs"] > 0
    far = start_hub(tmp_path / "far")
    assert registry_json(far.data, "import", str(archive), "--manifest", done["manifest"])["created"]
    trust_key(far.url, "acme")
    loaded = load(far, tmp_path / "far home")
    assert loaded.returncode == 0, loaded.stderr
    assert httpx.get(far.url + tree).json() == httpx.get(upstream.url + tree).json()
    sha = httpx.get(upstream.url + "/api/kernels/acme/relu/revision/v1").json()["sha"]
    assert httpx.get(far.url + "/api/kernels/acme/relu/revision/v1").json()["sha"] == sha
    assert khub("registry", "fsck", "--data", far.data).returncode == 0
    again = registry_json(far.data, "import", str(archive))
    assert (again["created"], again["moved"]) == ([], [])
    token = far.token("acme")
    written = httpx.post(
        f"{far.url}/api/kernels/acme/relu/branch/x", json={}, headers={"Authorization": f"Bearer {token}"}
    )
    assert written.status_code == 403 and "is a copy of" in written.json()["error"]


def test_copy_when_more_of_it_was_fetched_then_the_next_archive_brings_that(
    start_hub: StartHub, mirror: Hub, tmp_path: Path
) -> None:
    far = start_hub(tmp_path / "far")
    assert status(mirror, "/api/kernels/acme/relu/tree/v1?recursive=true") == 200
    first = registry_json(mirror.data, "export", str(tmp_path / "1.tar"), "--all")
    assert first["repos"] == ["acme/relu"] and first["blobs"] == 0
    registry_json(far.data, "import", str(tmp_path / "1.tar"))
    assert status(far, PATH) == 503
    time.sleep(1.1)  # copies are told apart by the second in which the upstream was asked
    assert status(mirror, PATH) == 200
    assert registry_json(mirror.data, "export", str(tmp_path / "2.tar"), "--all")["blobs"] == 1
    registry_json(far.data, "import", str(tmp_path / "2.tar"))
    assert status(far, PATH) == 200
    code, _, err = run(far.data, "import", str(tmp_path / "1.tar"))
    assert code == 30 and "newer archive" in err
    assert run(far.data, "import", str(tmp_path / "1.tar"), "--force")[0] == 0
    assert status(far, PATH) == 200


def test_copy_when_nothing_of_it_was_fetched_then_the_command_says_so(mirror: Hub, tmp_path: Path) -> None:
    assert status(mirror, "/api/kernels/acme/relu/refs") == 200
    code, _, err = run(mirror.data, "export", str(tmp_path / "c.tar"), "acme/relu")
    assert code == 2 and "nothing was fetched yet" in err
    assert registry_json(mirror.data, "export", str(tmp_path / "c.tar"), "--all")["repos"] == []


def test_copy_when_the_name_is_a_repository_of_the_far_hub_then_refused(
    archive: bytes, tmp_path: Path
) -> None:
    (tmp_path / "c.tar").write_bytes(archive)
    place = Place(tmp_path / "far")
    store = Store(place.data, place.database)
    store.create_repo(RepoName("acme", "relu"), "acme")
    code, _, err = run(place.data, "import", str(tmp_path / "c.tar"))
    assert code == 30 and "is a repository of this hub" in err


def _stand_in(document: dict[str, Any]) -> None:
    """Content under a digest of the forger's choice: what a private file's owner would like to keep."""
    for tree in document["trees"].values():
        for file in tree.values():
            file[1] = "0" * 24 + "1" * 40


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a stand-in for another file": _stand_in,
    "a repository that is no copy": lambda it: it.pop("copied"),
    "a parent": lambda it: next(iter(it["commits"].values())).__setitem__(0, next(iter(it["commits"]))),
    "an upstream with a password": lambda it: it["copied"].update(upstream="https://a:b@hub.example"),
    "an upstream that is none": lambda it: it["copied"].update(upstream="file:///etc"),
    "a kind": lambda it: it["copied"].update(kind="spaces"),
    "a reference without a commit": lambda it: it["refs"].update({"heads/v2": "1" * 40}),
    "a claim about a file of another copy": lambda it: it["copied"]["claims"].update({"1" * 40: "2" * 64}),
    "a claim of nonsense": lambda it: it["copied"].update(claims={"1" * 40: "../../etc/passwd"}),
}


@pytest.mark.parametrize("name", FORGED)
def test_copy_when_forged_then_refused_although_every_hash_fits(
    archive: bytes, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "c.tar"
    file.write_bytes(archive)
    found = members(file)
    document = json.loads(found[1][1])
    FORGED[name](document)
    found[1] = (found[1][0], json.dumps(document).encode())
    place = Place(tmp_path / "far")
    store = Store(place.data, place.database)
    with pytest.raises(IntegrityError):
        carry_in(store, open_blobs(place, store), resealed(file, found))
    assert not store.has_org("acme")


def test_archive_when_it_has_a_copy_then_its_format_is_one_that_older_hubs_refuse(
    archive: bytes, tmp_path: Path
) -> None:
    (tmp_path / "c.tar").write_bytes(archive)
    assert json.loads(members(tmp_path / "c.tar")[0][1])["format"] == 2
