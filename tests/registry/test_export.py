"""Repositories over an air gap: one archive, checked before any of it can be seen."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from khub_process import ROOT, StartHub, khub_environment
from registry_command import registry_json, run
from signing import sign_package, trust_key

from hub_loader.errors import IntegrityError, RegistryError, UsageError
from registry.blobs import BlobStore
from registry.carry_in import carry_in
from registry.clock import utc_now
from registry.export import export
from registry.fsck import fsck
from registry.names import RepoName
from registry.place import Place, open_blobs
from registry.store import Store
from registry.tree import Add, File, blob_oid, lfs_file

sys.path.insert(0, str(ROOT / "tests" / "hub_loader"))
from packages import python_package

REPO = RepoName("acme", "relu")
Opened = tuple[Store, BlobStore]


def opened(place: Place) -> Opened:
    store = Store(place.data, place.database)
    return store, open_blobs(place, store)


def commit(hub: Opened, files: dict[str, bytes], repo: RepoName = REPO, *, lfs: bool = False) -> str:
    store, blobs = hub
    store.create_repo(repo, repo.org)
    adds = []
    for path, content in files.items():
        sha256, size = blobs.put([content]), len(content)
        adds.append(Add(path, lfs_file(sha256, size) if lfs else File(blob_oid(content), sha256, size)))
    blobs.sync()
    return store.commit(repo, "main", adds, message="m", author="a")


def contents(hub: Opened, revision: str = "main", repo: RepoName = REPO) -> dict[str, bytes]:
    store, blobs = hub
    found = store.list_tree(store.resolve(repo, revision), "", True, "", 1000)
    return {entry.path: b"".join(blobs.read(entry.file.sha256)) for entry in found if entry.file}


def nothing(hub: Opened) -> bool:
    return not hub[0].has_org("acme")


@pytest.fixture
def source(tmp_path: Path) -> Opened:
    hub = opened(Place(tmp_path / "source"))
    first = commit(hub, {"a": b"one", "b/c": b"two" * 1000, "empty": b""})
    commit(hub, {"large": b"x" * (2 << 20)}, lfs=True)
    hub[0].create_tag(REPO, "t1", first)
    hub[0].create_branch(REPO, "v1", first)
    return hub


@pytest.fixture
def archive(source: Opened, tmp_path: Path) -> Path:
    export(*source, tmp_path / "carry.tar", ["acme/relu"], utc_now())
    return tmp_path / "carry.tar"


def members(archive: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(archive) as tar:
        return [(info, _content(tar, info)) for info in tar]


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    found = tar.extractfile(info) if info.isreg() else None
    return b"" if found is None else found.read()


def rewrite(archive: Path, found: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in found:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return archive


def resealed(archive: Path, found: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """The archive with a manifest that fits what is in it now."""
    listed = [
        {"name": info.name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for info, content in found[1:]
    ]
    manifest = json.loads(found[0][1]) | {"members": listed}
    return rewrite(archive, [(found[0][0], json.dumps(manifest).encode()), *found[1:]])


def test_import_when_into_any_kind_of_place_then_commits_and_content_are_the_same(
    source: Opened, archive: Path, place: Place
) -> None:
    hub = opened(place)
    done = carry_in(*hub, archive)
    assert done.created == ("acme/relu",) and done.blobs == 4
    assert hub[0].refs(REPO) == source[0].refs(REPO)
    for revision in ("main", "t1", "v1"):
        assert hub[0].resolve(REPO, revision).commit == source[0].resolve(REPO, revision).commit
        assert contents(hub, revision) == contents(source, revision)
    assert fsck(*hub).problems == ()
    again = carry_in(*hub, archive)
    assert (again.created, again.moved) == ((), ())


def test_import_when_the_source_went_on_then_branches_follow(
    source: Opened, archive: Path, tmp_path: Path
) -> None:
    hub = opened(Place(tmp_path / "to"))
    carry_in(*hub, archive)
    newer = commit(source, {"a": b"three"})
    export(*source, tmp_path / "newer.tar", [], utc_now())
    assert carry_in(*hub, tmp_path / "newer.tar").moved == ("acme/relu heads/main",)
    assert hub[0].resolve(REPO, "main").commit == newer and contents(hub)["a"] == b"three"


def test_import_when_a_branch_would_move_backwards_then_refused_unless_forced(
    source: Opened, archive: Path, tmp_path: Path
) -> None:
    hub = opened(Place(tmp_path / "to"))
    carry_in(*hub, archive)
    newer = commit(source, {"a": b"three"})
    commit(source, {"a": b"other"}, RepoName("acme", "another"))
    export(*source, tmp_path / "newer.tar", [], utc_now())
    carry_in(*hub, tmp_path / "newer.tar")
    with pytest.raises(RegistryError, match=r"heads/main .*--force"):
        carry_in(*hub, archive)
    assert hub[0].resolve(REPO, "main").commit == newer
    assert carry_in(*hub, archive, force=True).moved == ("acme/relu heads/main",)
    assert hub[0].resolve(REPO, "main").commit != newer and hub[0].resolve(REPO, newer).commit == newer


def test_import_when_one_repository_is_refused_then_none_is_imported(source: Opened, tmp_path: Path) -> None:
    commit(source, {"a": b"new"}, RepoName("acme", "aaa"))
    export(*source, tmp_path / "both.tar", [], utc_now())
    hub = opened(Place(tmp_path / "to"))
    commit(hub, {"a": b"a repository of the same name"})
    with pytest.raises(RegistryError, match="acme/relu"):
        carry_in(*hub, tmp_path / "both.tar")
    with pytest.raises(RegistryError):
        hub[0].repo(RepoName("acme", "aaa"))


def test_import_when_one_organizations_name_is_taken_in_another_case_then_none_is_imported(
    source: Opened, tmp_path: Path
) -> None:
    commit(source, {"a": b"new"}, RepoName("zeta", "gelu"))
    export(*source, tmp_path / "both.tar", [], utc_now())
    hub = opened(Place(tmp_path / "to"))
    commit(hub, {"a": b"another"}, RepoName("Zeta", "relu"))
    with pytest.raises(RegistryError, match="'zeta' is taken by the organization 'Zeta'"):
        carry_in(*hub, tmp_path / "both.tar")
    assert nothing(hub)


def test_import_when_a_tag_is_elsewhere_then_refused(source: Opened, archive: Path, tmp_path: Path) -> None:
    hub = opened(Place(tmp_path / "to"))
    carry_in(*hub, archive)
    source[0].delete_tag(REPO, "t1")
    source[0].create_tag(REPO, "t1", "main")
    export(*source, tmp_path / "moved.tar", [], utc_now())
    with pytest.raises(RegistryError, match="tags/t1"):
        carry_in(*hub, tmp_path / "moved.tar")


def test_import_when_any_byte_is_cut_or_changed_then_refused_and_nothing_is_seen(
    archive: Path, tmp_path: Path
) -> None:
    good = archive.read_bytes()
    hub = opened(Place(tmp_path / "to"))
    damaged = {f"cut at {at}": good[: len(good) * at // 10] for at in range(10)}
    for what in (b"two" * 1000, b"x" * 1000, b'"m"', b'"format"', b'"size"'):
        at = good.index(what) + len(what) // 2
        damaged[f"changed {what[:8]!r}"] = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    for name, content in damaged.items():
        (tmp_path / "damaged.tar").write_bytes(content)
        with pytest.raises(IntegrityError):
            carry_in(*hub, tmp_path / "damaged.tar")
        assert nothing(hub), name
    with pytest.raises(UsageError):
        carry_in(*hub, tmp_path / "missing.tar")


Found = list[tuple[tarfile.TarInfo, bytes]]


def _named(name: str) -> Callable[[Found], Found]:
    def change(found: Found) -> Found:
        info = tarfile.TarInfo(name)
        return [*found, (info, b"x")]

    return change


def _link(found: Found) -> Found:
    info = tarfile.TarInfo(found[2][0].name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return [*found[:2], (info, b""), *found[3:]]


@pytest.mark.parametrize(
    "change",
    [
        _named("../outside"),
        _named("/etc/outside"),
        _named("blobs/../../outside"),
        _named("blobs/" + "0" * 64),
        _link,
        lambda found: [found[0], *found[2:]],
        lambda found: [*found[:-1]],
        lambda found: [*found, found[-1]],
        lambda found: [found[1], found[0], *found[2:]],
    ],
    ids=["up", "absolute", "in blobs", "other name", "link", "no repo", "no blob", "twice", "order"],
)
def test_import_when_members_are_not_those_of_its_repositories_then_refused_with_any_manifest(
    archive: Path, tmp_path: Path, change: Callable[[Found], Found]
) -> None:
    hub = opened(Place(tmp_path / "deep" / "to"))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    found = members(archive)
    for seal in (rewrite, resealed):
        with pytest.raises(IntegrityError):
            carry_in(*hub, seal(archive, change(found)))
    assert nothing(hub)
    after = {path for path in tmp_path.rglob("*") if path.is_file() and "to" not in path.parts}
    assert after <= before


def _tree(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], None]:
    def every(document: dict[str, Any]) -> None:
        for tree in document["trees"].values():
            change(tree)

    return every


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "another repository": lambda it: it.update(repo="acme/other"),
    "a path up": _tree(lambda tree: tree.update({"../x": ["0" * 40, "0" * 64, 1, False]})),
    "a file less": _tree(lambda tree: tree.pop("a", None)),
    "another size": _tree(lambda tree: "a" in tree and tree["a"].__setitem__(2, 4)),
    "another id": _tree(lambda tree: "a" in tree and tree["a"].__setitem__(0, "0" * 40)),
    "another content": _tree(lambda tree: "a" in tree and tree["a"].__setitem__(1, tree["b/c"][1])),
    "an author": lambda it: next(iter(it["commits"].values())).__setitem__(2, "mallory"),
    "a parent": lambda it: next(iter(it["commits"].values())).__setitem__(0, "0" * 40),
    "a reference": lambda it: it["refs"].update({"heads/v9": "0" * 40}),
    "a kind": lambda it: it["refs"].update({"pr/1": it["refs"]["heads/main"]}),
    "a name": lambda it: it["refs"].update({"heads/../x": it["refs"]["heads/main"]}),
    "no main": lambda it: it["refs"].pop("heads/main"),
    "types": lambda it: it.update(refs=[], private="no"),
    "no keys": lambda it: it.clear(),
}


@pytest.mark.parametrize("name", FORGED)
def test_import_when_a_repository_is_forged_then_refused_although_every_hash_fits(
    archive: Path, tmp_path: Path, name: str
) -> None:
    hub = opened(Place(tmp_path / "to"))
    found = members(archive)
    document = json.loads(found[1][1])
    FORGED[name](document)
    found[1] = (found[1][0], json.dumps(document).encode())
    with pytest.raises(IntegrityError):
        carry_in(*hub, resealed(archive, found))
    assert nothing(hub)


@pytest.mark.parametrize("key", ["GNU.sparse.size", "GNU.sparse.map"])
def test_import_when_a_header_is_nonsense_then_refused(archive: Path, tmp_path: Path, key: str) -> None:
    found = members(archive)
    found[0][0].pax_headers = {key: "x,y"}
    with pytest.raises(IntegrityError, match="is no whole archive"):
        carry_in(*opened(Place(tmp_path / "to")), rewrite(archive, found))


def test_import_when_its_manifest_is_nested_without_end_then_refused(archive: Path, tmp_path: Path) -> None:
    found = members(archive)
    found[0] = (found[0][0], b"[" * 100_000)
    with pytest.raises(IntegrityError, match="manifest is not one of"):
        carry_in(*opened(Place(tmp_path / "to")), rewrite(archive, found))


def test_import_when_a_manifest_is_asked_for_then_no_other_archive_is_taken(
    archive: Path, tmp_path: Path
) -> None:
    expected = hashlib.sha256(members(archive)[0][1]).hexdigest()
    hub = opened(Place(tmp_path / "to"))
    with pytest.raises(IntegrityError, match=expected):
        carry_in(*hub, archive, manifest="0" * 64)
    assert nothing(hub) and carry_in(*hub, archive, manifest=expected).manifest == expected


def test_export_when_content_is_damaged_or_missing_then_refused_and_no_file_is_left(
    source: Opened, tmp_path: Path
) -> None:
    (tmp_path / "source" / "blobs" / hashlib.sha256(b"one").hexdigest()).write_bytes(b"0ne")
    with pytest.raises(IntegrityError, match="fsck"):
        export(*source, tmp_path / "x.tar", [], utc_now())
    source[1].storage.delete(hashlib.sha256(b"one").hexdigest())
    with pytest.raises(IntegrityError, match="fsck"):
        export(*source, tmp_path / "x.tar", [], utc_now())
    assert list(tmp_path.glob("*x.tar*")) == []


def test_commands_when_used_or_misused_then_json_and_exit_codes(source: Opened, tmp_path: Path) -> None:
    data, to, file = tmp_path / "source", tmp_path / "to", str(tmp_path / "c.tar")
    assert run(data, "export", file)[0] == 2
    assert run(data, "export", file, "acme/relu", "--all")[0] == 2
    assert run(data, "export", file, "acme/unknown")[0] == 30
    out = registry_json(data, "export", file, "acme/relu")
    assert out["repos"] == ["acme/relu"] and out["commits"] == 3
    assert run(data, "export", file, "--all")[0] == 2
    into = registry_json(to, "import", file, "--manifest", out["manifest"])
    assert into["created"] == ["acme/relu"] and into["manifest"] == out["manifest"]
    assert run(to, "import", file)[0] == 0
    assert run(to, "import", file, "--manifest", "0" * 64)[0] == 13
    assert run(to, "import", str(tmp_path / "none"))[0] == 2
    commit(opened(Place(to)), {"a": b"here alone"})
    assert run(to, "import", file)[0] == 30


def test_get_kernel_when_a_signed_package_was_imported_then_it_loads_under_the_policy(
    start_hub: StartHub, tmp_path: Path
) -> None:
    from huggingface_hub import HfApi

    hub = start_hub(tmp_path / "data")
    package = python_package(tmp_path / "package", name="relu", kernel_id="_relu_carried_1")
    sign_package(package.folder, "acme/relu")
    api = HfApi(endpoint=hub.url, token=hub.token("acme"))
    api.create_repo("acme/relu", repo_type="kernel")
    api.create_branch("acme/relu", branch="v1", repo_type="kernel")
    api.upload_folder(repo_id="acme/relu", repo_type="kernel", folder_path=package.folder, revision="v1")
    registry_json(hub.data, "export", str(tmp_path / "c.tar"), "acme/relu")
    far = start_hub(tmp_path / "far")
    registry_json(far.data, "import", str(tmp_path / "c.tar"))
    code = "from hub_loader import get_kernel; print(get_kernel('acme/relu', version=1).__name__)"

    def load() -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in khub_environment().items() if not k.startswith(("HF_", "KERNELS_"))}
        environment = kept | {"HF_ENDPOINT": far.url, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    refused = load()
    assert refused.returncode != 0 and "khub trust add" in refused.stderr
    trust_key(far.url, "acme")
    done = load()
    assert done.returncode == 0, done.stderr
