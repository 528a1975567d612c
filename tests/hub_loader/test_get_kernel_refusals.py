"""What get_kernel refuses: a class for each, one line that names the thing and the cure, nothing kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packages import native_package, python_package
from static_hub import StaticHub

import hub_loader
from hub_loader import get_kernel


def variant_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "cache/kernel-hub/variants").iterdir()
    return folder


def nothing_half_written(tmp_path: Path) -> bool:
    cache = tmp_path / "cache/kernel-hub"
    return not list((cache / "tmp").glob("*")) and not list((cache / "variants").glob("*"))


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
        hub_loader.IntegrityError, match=r"expected sha256 .* got .* delete the folder"
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
    with pytest.raises(hub_loader.RepositoryNotFoundError, match=r"'org/nothing'.*check the spelling"):
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


def test_get_kernel_when_the_hub_sends_a_shorter_file_then_names_file_and_bytes(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    hub.replaced["numbers.py"] = b"VAL"
    with pytest.raises(hub_loader.DownloadError, match=r"numbers\.py of org/demo: expected 10 bytes, got 3"):
        get_kernel("org/demo")
    assert nothing_half_written(tmp_path)


def test_get_kernel_when_the_two_manifests_disagree_then_refuses(hub: StaticHub, tmp_path: Path) -> None:
    package = python_package(tmp_path / "source")
    index = json.loads((package.folder / "index.json").read_bytes())
    del index["variants"]["torch-cpu"]["files"]["demo/table.txt"]
    (package.folder / "index.json").write_text(json.dumps(index))
    hub.publish("org/demo", "v1", package.folder)
    with pytest.raises(hub_loader.InvalidKernelError, match=r"its digest is not what index\.json says"):
        get_kernel("org/demo")
    assert nothing_half_written(tmp_path)


def test_get_kernel_when_the_id_would_shadow_a_module_then_refuses_before_any_download(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.signs = False  # nobody signs what cannot be parsed
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", kernel_id="json").folder)
    with pytest.raises(hub_loader.InvalidKernelError, match="'json', which could shadow a module"):
        get_kernel("org/demo")
    assert sys.modules["json"] is json
    assert not any("/build/" in path for path in hub.requests)


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
