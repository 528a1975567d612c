"""Packages as the public Hub has them: no index.json, old layouts, dependencies, moves. They load unchanged."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from packages import native_package, native_variant, python_package, unique_id, write_package
from static_hub import StaticHub

import hub_loader
from hub_loader.depends import PEER_VERSION

# Packages without index.json have no signature of ours, and this hub is not the public one.
get_kernel = functools.partial(hub_loader.get_kernel, trust_remote_code=True)

NEEDS = """
import kernels
from kernels import get_kernel_dep

base = kernels.get_kernel_dep("org/base")
assert get_kernel_dep("org/base") is base

def value():
    return base.value() + 1
"""


def needing(folder: Path, *needed: object, name: str = "top", **options: object) -> None:
    """A package that adds 1 to what org/base says."""
    write_package(  # type: ignore[misc]
        folder,
        {"__init__.py": NEEDS.encode()},
        kernel_id=unique_id(name),
        name=name,
        variants=("torch-cpu",),
        kernel_depends=needed,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("has_digest", [True, False])
@pytest.mark.parametrize("is_old", [True, False])
def test_package_without_an_index_is_proven_by_the_tree_and_loads_then_offline_too(
    hub: StaticHub, tmp_path: Path, has_digest: bool, is_old: bool
) -> None:
    package = native_package(tmp_path / "source", is_old=is_old, has_index=False, has_digest=has_digest)
    hub.publish("org/demo", "v1", package.folder)
    kernel = get_kernel("org/demo", version=1)
    assert (kernel.__name__, kernel.answer()) == (package.id, 42)
    offline = "import hub_loader; print(hub_loader.get_kernel('org/demo', version=1, trust_remote_code=True).answer())"
    hub.clear()
    done = subprocess.run(
        [sys.executable, "-c", offline],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, hub.requests) == ("42\n", []), done.stderr


def test_package_without_an_index_takes_three_requests_more_than_it_has_files_four_deep(
    hub: StaticHub, tmp_path: Path
) -> None:
    at_once = threading.Barrier(4)
    for path in ("torch-cpu/__init__.py", "demo/__init__.py", "numbers.py", "table.txt"):
        hub.together[path] = at_once
    commit = hub.publish("org/demo", "v1", python_package(tmp_path / "source", has_index=False).folder)
    get_kernel("org/demo", version=1)
    base = f"/kernels/org/demo/resolve/{commit}/build/torch-cpu"
    index = "/kernels/org/demo/resolve/v1/index.json"
    assert sorted(hub.requests[:2]) == [index, f"{index}.dsse"]
    then = [
        f"/api/kernels/org/demo/tree/{commit}?recursive=true&expand=false",
        f"{base}/metadata.json",
    ]
    assert hub.requests[2:4] == then
    assert len(hub.requests) == 4 + 4


def test_tree_of_many_pages_is_read_to_its_end_from_the_same_host(hub: StaticHub, tmp_path: Path) -> None:
    hub.page = 2
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=6, has_index=False).folder)
    assert get_kernel("org/demo").value() == 6
    assert sum("/tree/" in path for path in hub.requests) > 3


@pytest.mark.parametrize("lfs", [(), (".py", ".json")])
@pytest.mark.parametrize("has_digest", [True, False])
def test_download_that_is_not_what_the_tree_lists_is_refused_and_not_kept(
    hub: StaticHub, tmp_path: Path, lfs: tuple[str, ...], has_digest: bool
) -> None:
    hub.lfs = lfs
    package = python_package(tmp_path / "source", has_index=False, has_digest=has_digest)
    hub.publish("org/demo", "v1", package.folder)
    hub.replaced["numbers.py"] = b"VALUE = 2\n"
    algorithm = "sha256" if lfs else "git blob id"
    with pytest.raises(hub_loader.IntegrityError, match=rf"numbers\.py of org/demo: .* expected {algorithm}"):
        get_kernel("org/demo")
    assert list((tmp_path / "cache").rglob("numbers.py")) == []
    assert package.id not in sys.modules


@pytest.mark.parametrize("has_digest", [True, False])
def test_cached_file_that_was_changed_is_refused_without_an_index_too(
    hub: StaticHub, tmp_path: Path, has_digest: bool
) -> None:
    package = python_package(tmp_path / "source", has_index=False, has_digest=has_digest)
    hub.publish("org/demo", "v1", package.folder)
    folder = hub_loader.install_kernel("org/demo", trust_remote_code=True)
    (folder / "numbers.py").chmod(0o644)
    (folder / "numbers.py").write_bytes(b"VALUE = 2\n")
    with pytest.raises(hub_loader.IntegrityError, match=r"numbers\.py is corrupt"):
        get_kernel("org/demo")


def test_bytecode_in_the_repository_is_never_fetched_and_the_signature_is_kept(
    hub: StaticHub, tmp_path: Path
) -> None:
    package = python_package(tmp_path / "source", has_index=False)
    (folder,) = package.variants.values()
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "numbers.cpython-311.pyc").write_bytes(b"bad")
    digest = base64.b64encode(hashlib.sha256((folder / "metadata.json").read_bytes()).digest()).decode()
    bundle = {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "verificationMaterial": {}}
    bundle["messageSignature"] = {"messageDigest": {"algorithm": "SHA2_256", "digest": digest}}
    (folder / "metadata.json.sigstore").write_text(json.dumps(bundle))
    hub.publish("org/demo", "v1", package.folder)
    assert get_kernel("org/demo").value() == 1
    assert not any(path.endswith(".pyc") for path in hub.requests)
    assert any(path.endswith("/metadata.json.sigstore") for path in hub.requests)


def test_file_of_the_tree_that_the_digest_lacks_is_refused(hub: StaticHub, tmp_path: Path) -> None:
    package = python_package(tmp_path / "source", has_index=False)
    (folder,) = package.variants.values()
    (folder / "added.py").write_text("")
    hub.publish("org/demo", "v1", package.folder)
    with pytest.raises(hub_loader.InvalidKernelError, match=r"'added\.py' is not in its digest"):
        get_kernel("org/demo")


def test_variants_outside_the_grammar_are_passed_over(
    hub: StaticHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = python_package(tmp_path / "source", has_index=False)
    (folder,) = package.variants.values()
    for name in ("torch-banana", "notes"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "metadata.json").write_text("{}")
    hub.publish("org/demo", "v1", package.folder)
    assert [d.variant for d in hub_loader.explain("org/demo", backend="cpu").decisions] == ["torch-cpu"]
    assert "build/torch-banana is passed over" in caplog.text


def test_kernel_depends_are_loaded_first_and_found_as_the_hubs_client_gives_them(
    hub: StaticHub, tmp_path: Path
) -> None:
    base = python_package(tmp_path / "base", value=20, name="base", version=3)
    hub.publish("org/base", "v3", base.folder)
    needing(tmp_path / "top", {"repo-id": "org/base", "version": 3})
    hub.publish("org/top", "v1", tmp_path / "top")
    before = sys.modules.get("kernels")
    assert get_kernel("org/top").value() == 21
    assert sys.modules.get("kernels") is before
    ids = [kernel.metadata.id for kernel in hub_loader.get_loaded_kernels()]
    assert ids.index(base.id) < len(ids) - 1
    with pytest.raises(hub_loader.MissingDependencyError, match="while a kernel is imported"):
        hub_loader.get_kernel_dep("org/base")


def test_has_kernel_when_a_dependency_is_not_there_is_false(hub: StaticHub, tmp_path: Path) -> None:
    needing(tmp_path / "top", {"repo-id": "org/absent", "version": 3})
    hub.publish("org/top", "v1", tmp_path / "top")
    assert not hub_loader.has_kernel("org/top", trust_remote_code=True)
    with pytest.raises(hub_loader.RepositoryNotFoundError, match="org/absent"):
        get_kernel("org/top")


def test_kernels_that_depend_on_each_other_are_refused(hub: StaticHub, tmp_path: Path) -> None:
    needing(tmp_path / "a", {"repo-id": "org/b", "version": 1})
    needing(tmp_path / "b", {"repo-id": "org/a", "version": 1})
    hub.publish("org/a", "v1", tmp_path / "a")
    hub.publish("org/b", "v1", tmp_path / "b")
    chain = "org/a version 1 needs org/b version 1 needs org/a version 1"
    with pytest.raises(hub_loader.InvalidKernelError, match=chain):
        get_kernel("org/a", version=1)
    assert not hub_loader.has_kernel("org/a", version=1, trust_remote_code=True)


@pytest.mark.parametrize(
    "entry", ["org/base", {"repo-id": "org/base"}, {"repo-id": "org/base", "version": 1, "revision": "main"}]
)
def test_kernel_depends_that_are_malformed_are_refused(hub: StaticHub, tmp_path: Path, entry: object) -> None:
    needing(tmp_path / "top", entry)
    hub.publish("org/top", "v1", tmp_path / "top")
    with pytest.raises(hub_loader.InvalidKernelError, match="a kernel is written"):
        get_kernel("org/top")


def test_python_depends_are_named_as_pip_knows_them(hub: StaticHub, tmp_path: Path) -> None:
    depends = ("packaging", "onednn", "nvidia-cutlass-dsl", "no-such-distribution")
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", python_depends=depends).folder)
    missing = "needs nvidia-cutlass-dsl, no-such-distribution: pip install"
    with pytest.raises(hub_loader.MissingDependencyError, match=missing):
        get_kernel("org/demo")


def test_kernels_minver_is_held_against_the_client_that_this_loader_follows(
    hub: StaticHub, tmp_path: Path
) -> None:
    own = ".".join(map(str, PEER_VERSION))
    fits = python_package(tmp_path / "fits", extra={"kernels-minver": own})
    newer = python_package(tmp_path / "newer", extra={"kernels-minver": "99.0.0"}, version=2)
    hub.publish("org/demo", "v1", fits.folder)
    hub.publish("org/demo", "v2", newer.folder)
    assert get_kernel("org/demo", version=1).value() == 1
    with pytest.raises(hub_loader.MissingDependencyError, match=r"kernels 99\.0\.0.*upgrade kernel-hub"):
        get_kernel("org/demo", version=2)


def test_renamed_repository_is_followed_and_named(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("new/demo", "v1", python_package(tmp_path / "source", value=3).folder)
    hub.moved["org/demo"] = "new/demo"
    assert get_kernel("org/demo", version=1).value() == 3
    assert hub_loader.get_loaded_kernels()[-1].repo_info.repo_id == "new/demo"  # type: ignore[union-attr]
    hub.clear()
    assert hub_loader.has_kernel("org/demo", version=1, trust_remote_code=True)
    assert all("/metadata.json" in path for path in hub.requests)


def test_repository_that_announces_its_move_is_followed_with_a_warning(
    hub: StaticHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.publish("new/demo", "main", python_package(tmp_path / "source", value=3).folder)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/kernel-status.toml").write_text('kind = "redirect"\ndestination = "new/demo"\n')
    hub.publish("org/demo", "v1", tmp_path / "old")
    assert get_kernel("org/demo").value() == 3
    assert "org/demo has moved to new/demo" in caplog.text


def test_repositories_that_announce_moves_in_a_circle_are_refused(hub: StaticHub, tmp_path: Path) -> None:
    (tmp_path / "kernel-status.toml").write_text('kind = "redirect"\ndestination = "org/demo"\n')
    hub.publish("org/demo", "main", tmp_path)
    with pytest.raises(hub_loader.InvalidKernelError, match="has moved more than 3 times"):
        get_kernel("org/demo")


def test_repository_without_a_version_is_taken_at_main(
    hub: StaticHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "hub_loader")
    hub.publish("org/demo", "main", python_package(tmp_path / "source", value=3).folder)
    assert get_kernel("org/demo").value() == 3
    assert "main is taken, for there is no version yet" in caplog.text


def test_archs_of_a_variant_without_an_index_are_read_before_it_is_chosen(
    hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = python_package(tmp_path / "source", has_index=False, variants=("torch-cuda",), archs=("8.0",))
    hub.publish("org/demo", "v1", package.folder)
    own = hub_loader.detect_environment()
    assert own.torch is not None
    for_cuda = replace(own, torch=replace(own.torch, release="2.13.0+cu130", cuda=(13, 0)))
    hopper, ampere = (replace(for_cuda, compute_capabilities=(gpu,)) for gpu in ((9, 0), (8, 6)))
    assert hub_loader.explain("org/demo", backend="cuda", environment=ampere).chosen == "torch-cuda"
    refused = hub_loader.explain("org/demo", backend="cuda", environment=hopper)
    assert refused.chosen is None
    assert "compiled for compute capability 8.0" in refused.decisions[0].reason


def test_package_uploaded_with_the_stock_client_to_a_real_hub_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_hub: object
) -> None:
    from huggingface_hub import HfApi

    server = start_hub(tmp_path / "data")  # type: ignore[operator]
    package = native_package(tmp_path / "source", is_old=True, has_index=False, has_digest=False)
    api = HfApi(endpoint=server.url, token=server.token("org"))
    api.create_repo("org/old", repo_type="kernel")
    api.create_branch("org/old", branch="v1", repo_type="kernel")
    (tmp_path / "source/scratch").rename(tmp_path / "scratch")
    api.upload_folder(repo_id="org/old", repo_type="kernel", folder_path=package.folder, revision="v1")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path / "cache"))
    assert get_kernel("org/old", version=1).answer() == 42
    assert [v.variant.variant_str for v in hub_loader.get_kernel_variants("org/old", version=1)] == [
        native_variant()
    ]


def test_blob_id_of_the_tree_is_the_one_git_computes(tmp_path: Path) -> None:
    data = b"VALUE = 1\n"
    (tmp_path / "file").write_bytes(data)
    oid = subprocess.run(
        ["git", "hash-object", tmp_path / "file"], capture_output=True, text=True, check=True
    ).stdout.strip()
    from hub_loader.manifest import BlobEntry

    digest = BlobEntry(oid, len(data)).new_hash()
    digest.update(data)
    assert digest.hexdigest() == oid
