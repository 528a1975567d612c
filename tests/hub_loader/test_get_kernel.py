"""get_kernel against a real server: what it asks, what it keeps, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packages import native_package, native_variant, python_package
from static_hub import StaticHub

import hub_loader
from hub_loader import get_kernel

LOAD = "import sys, hub_loader; print(hub_loader.get_kernel({!r}).{}())"


def in_new_process(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def variant_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "cache/kernel-hub/variants").iterdir()
    return folder


def nothing_half_written(tmp_path: Path) -> bool:
    cache = tmp_path / "cache/kernel-hub"
    return not list((cache / "tmp").glob("*")) and not list((cache / "variants").glob("*"))


def test_get_kernel_when_cold_then_asks_refs_index_and_each_file_once(hub: StaticHub, tmp_path: Path) -> None:
    package = native_package(tmp_path / "source")
    commit = hub.publish("org/demo", "v1", package.folder)
    kernel = get_kernel("org/demo")
    assert kernel.__name__ == package.id
    assert kernel.answer() == 42
    base = f"/kernels/org/demo/resolve/{commit}"
    files = [
        f"{base}/build/{native_variant()}/{p}" for p in ("metadata.json", *package_files(package.variants))
    ]
    assert sorted(hub.requests) == sorted(["/api/kernels/org/demo/refs", f"{base}/index.json", *files])


def package_files(variants: object) -> list[str]:
    (folder,) = variants.values()  # type: ignore[attr-defined]
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if path != "metadata.json"]


def test_get_kernel_when_loaded_then_sends_no_request(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    first = get_kernel("org/demo", version=1)
    sent = len(hub.requests)
    assert get_kernel("org/demo", version=1) is first
    assert len(hub.requests) == sent


def test_get_kernel_when_a_commit_is_given_then_refs_are_not_asked(hub: StaticHub, tmp_path: Path) -> None:
    commit = hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    get_kernel("org/demo", revision=commit)
    assert not any(path.endswith("/refs") for path in hub.requests)


def test_get_kernel_when_cached_by_another_process_then_one_request(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", native_package(tmp_path / "source").folder)
    assert in_new_process(LOAD.format("org/demo", "answer")).stdout == "42\n"
    hub.requests.clear()
    assert in_new_process(LOAD.format("org/demo", "answer")).stdout == "42\n"
    assert hub.requests == ["/api/kernels/org/demo/refs"]


def test_get_kernel_when_offline_after_a_fetch_then_loads_without_a_request(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", native_package(tmp_path / "source").folder)
    hub_loader.fetch_kernel("org/demo", version=1)
    hub.requests.clear()
    done = in_new_process(LOAD.format("org/demo", "answer"), HF_HUB_OFFLINE="1")
    assert (done.stdout, done.stderr, hub.requests) == ("42\n", "", [])


def test_get_kernel_when_offline_and_not_cached_then_says_what_to_do(
    hub: StaticHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(hub_loader.OfflineError, match="khub get org/demo --version 1"):
        get_kernel("org/demo", version=1)
    assert hub.requests == []


def test_get_kernel_when_the_hub_is_gone_then_uses_the_cache_and_warns(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7).folder)
    hub_loader.fetch_kernel("org/demo")
    hub.stop()
    done = in_new_process(LOAD.format("org/demo", "value"))
    assert done.stdout == "7\n"
    assert "using what it said last" in done.stderr
    assert hub.endpoint in done.stderr


def test_get_kernel_when_no_version_is_given_then_the_newest_stays_chosen(
    hub: StaticHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "hub_loader")
    for version in (2, 10):
        package = python_package(tmp_path / f"source{version}", value=version, version=version)
        hub.publish("org/demo", f"v{version}", package.folder)
    assert get_kernel("org/demo").value() == 10
    hub.publish("org/demo", "v11", python_package(tmp_path / "source11", value=11, version=11).folder)
    assert get_kernel("org/demo").value() == 10
    assert [record.message for record in caplog.records].count(caplog.messages[0]) == 1
    assert "v10 is the newest version" in caplog.messages[0]


def test_get_kernel_when_two_processes_fetch_at_once_then_both_load(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", native_package(tmp_path / "source").folder)
    code = LOAD.format("org/demo", "answer")
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in both] == ["42\n", "42\n"]
    assert list((tmp_path / "cache/kernel-hub/tmp").iterdir()) == []


def test_get_kernel_when_a_token_is_set_then_sends_it(
    hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    get_kernel("org/demo")
    assert set(hub.tokens) == {"Bearer hf_secret"}


@pytest.mark.parametrize("file", ["__init__.py", "demo/__init__.py", ".abi3.so", "metadata.json"])
def test_get_kernel_when_one_byte_of_a_cached_file_flips_then_refuses_and_names_it(
    hub: StaticHub, tmp_path: Path, file: str
) -> None:
    package = native_package(tmp_path / "source")
    hub.publish("org/demo", "v1", package.folder)
    hub_loader.fetch_kernel("org/demo")
    path = variant_folder(tmp_path) / (file if not file.startswith(".") else package.id + file)
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(flipped)
    with pytest.raises(
        hub_loader.IntegrityError, match="expected sha256 .* got .* delete the folder"
    ) as caught:
        get_kernel("org/demo")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert package.id not in sys.modules


def test_get_kernel_when_the_corrupt_folder_is_deleted_then_downloads_again(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=5).folder)
    hub_loader.fetch_kernel("org/demo")
    folder = variant_folder(tmp_path)
    (folder / "numbers.py").unlink()
    with pytest.raises(hub_loader.IntegrityError, match=r"numbers\.py is missing"):
        get_kernel("org/demo")
    subprocess.run(["rm", "-r", folder], check=True)
    assert get_kernel("org/demo").value() == 5


def test_get_kernel_when_the_repository_is_unknown_then_names_it_and_the_cure(
    hub: StaticHub, tmp_path: Path
) -> None:
    with pytest.raises(hub_loader.RepositoryNotFoundError, match="'org/nothing'.*check the spelling"):
        get_kernel("org/nothing")
    assert nothing_half_written(tmp_path)


def test_get_kernel_when_the_version_is_not_there_then_lists_those_that_are(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v3", tmp_path)
    with pytest.raises(hub_loader.VersionNotFoundError, match="has no v7: it has v3"):
        get_kernel("org/demo", version=7)


def test_get_kernel_when_the_commit_is_not_there_then_version_not_found(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v3", tmp_path)
    with pytest.raises(hub_loader.VersionNotFoundError, match="khub explain org/demo"):
        get_kernel("org/demo", revision="f" * 40)


def test_get_kernel_when_there_is_no_index_then_says_so(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", tmp_path)
    with pytest.raises(hub_loader.InvalidKernelError, match=r"org/demo has no index\.json"):
        get_kernel("org/demo")


def test_get_kernel_when_no_variant_fits_then_gives_each_reason_in_one_line(
    hub: StaticHub, tmp_path: Path
) -> None:
    variants = ("cp39-cpu-x86_64-linux", "torch-cuda")
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", variants=variants).folder)
    with pytest.raises(hub_loader.NoMatchingVariantError) as caught:
        get_kernel("org/demo", backend="cpu")
    message = str(caught.value)
    assert "cp39-cpu-x86_64-linux needs the interpreter cp39" in message
    assert "torch-cuda is for cuda, and cpu is " in message
    assert "\n" not in message


@pytest.mark.parametrize("file", ["numbers.py", "metadata.json", "index.json"])
def test_get_kernel_when_a_download_breaks_off_then_names_file_and_bytes_and_keeps_nothing(
    hub: StaticHub, tmp_path: Path, file: str
) -> None:
    package = python_package(tmp_path / "source")
    hub.publish("org/demo", "v1", package.folder)
    hub.truncated[file] = 3
    with pytest.raises(hub_loader.DownloadError, match=rf"{file} of org/demo: expected .* got 3 bytes"):
        get_kernel("org/demo")
    assert nothing_half_written(tmp_path)
    hub.truncated.clear()
    assert get_kernel("org/demo").value() == 1


def test_get_kernel_when_the_hub_sends_other_bytes_then_refuses_before_import(
    hub: StaticHub, tmp_path: Path
) -> None:
    package = python_package(tmp_path / "source")
    hub.publish("org/demo", "v1", package.folder)
    hub.replaced["numbers.py"] = b"VALUE = 2\n"
    with pytest.raises(hub_loader.IntegrityError, match=r"numbers\.py of org/demo"):
        get_kernel("org/demo")
    assert nothing_half_written(tmp_path)
    assert package.id not in sys.modules


def test_get_kernel_when_the_hub_sends_more_bytes_than_promised_then_stops(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    hub.replaced["numbers.py"] = b"#" * 100
    with pytest.raises(hub_loader.DownloadError, match="expected at most 10 bytes"):
        get_kernel("org/demo")


def test_get_kernel_when_the_two_manifests_disagree_then_refuses(hub: StaticHub, tmp_path: Path) -> None:
    package = python_package(tmp_path / "source")
    index = json.loads((package.folder / "index.json").read_bytes())
    del index["variants"]["torch-cpu"]["files"]["demo/table.txt"]
    (package.folder / "index.json").write_text(json.dumps(index))
    hub.publish("org/demo", "v1", package.folder)
    with pytest.raises(hub_loader.InvalidKernelError, match=r"its digest is not what index\.json says"):
        get_kernel("org/demo")
    assert nothing_half_written(tmp_path)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (401, "GatedRepo", hub_loader.AuthenticationError),
        (403, "", hub_loader.AuthenticationError),
        (401, "RepoNotFound", hub_loader.RepositoryNotFoundError),
        (503, "", hub_loader.DownloadError),
        (404, "", hub_loader.DownloadError),
    ],
)
def test_get_kernel_when_the_hub_refuses_then_the_class_tells_why(
    hub: StaticHub, status: int, code: str, error: type[Exception]
) -> None:
    hub.status["/refs"] = (status, code)
    with pytest.raises(error) as caught:
        get_kernel("org/demo")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("repo_id", ["demo", "a/b/c", "../x", "org/..", "", "org/de mo", "org/demo?x"])
def test_get_kernel_when_the_repository_is_misspelt_then_sends_nothing(hub: StaticHub, repo_id: str) -> None:
    with pytest.raises(hub_loader.UsageError, match="org/name"):
        get_kernel(repo_id)
    assert hub.requests == []


def test_get_kernel_when_version_and_revision_are_given_then_refuses(hub: StaticHub) -> None:
    with pytest.raises(hub_loader.UsageError, match="pass one of them"):
        get_kernel("org/demo", version=1, revision="main")


def test_has_kernel_when_nothing_fits_or_exists_then_is_false(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    assert hub_loader.has_kernel("org/demo", version=1, backend="cpu")
    assert not hub_loader.has_kernel("org/demo", version=2)
    assert not hub_loader.has_kernel("org/demo", backend="cuda")
    assert not hub_loader.has_kernel("org/nothing")


def test_get_loaded_kernels_when_one_is_loaded_then_tells_where_from(hub: StaticHub, tmp_path: Path) -> None:
    package = python_package(tmp_path / "source")
    commit = hub.publish("org/demo", "v1", package.folder)
    module = get_kernel("org/demo")
    (loaded,) = [kernel for kernel in hub_loader.get_loaded_kernels() if kernel.metadata.id == package.id]
    assert loaded.module is module
    assert loaded.repo_info == hub_loader.RepoInfo("org/demo", commit)
    assert loaded.variant == "torch-cpu"
    assert loaded.path == variant_folder(tmp_path)


def test_importing_hub_loader_then_imports_neither_torch_nor_huggingface_hub() -> None:
    code = "import sys, hub_loader; print([m for m in ('torch', 'huggingface_hub', 'httpx') if m in sys.modules])"
    assert in_new_process(code).stdout == "[]\n"


def test_get_kernel_when_warm_offline_then_never_imports_huggingface_hub(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    hub_loader.fetch_kernel("org/demo")
    code = (
        "import sys, hub_loader; hub_loader.get_kernel('org/demo'); print('huggingface_hub' in sys.modules)"
    )
    assert in_new_process(code, HF_HUB_OFFLINE="1").stdout == "False\n"
