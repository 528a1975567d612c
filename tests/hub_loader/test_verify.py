"""Verification of a folder: exactly the manifest's files, with their bytes, as plain files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from packages import Package, native_package, python_package

from hub_loader import IntegrityError, InvalidKernelError
from hub_loader.manifest import parse_index, parse_metadata, sha256_hex
from hub_loader.verify import verify_package

CURE = "delete it"


def open_descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return python_package(tmp_path).variants["torch-cpu"]


def test_verify_package_when_whole_then_hands_on_the_bytes(tmp_path: Path) -> None:
    package = native_package(tmp_path)
    (folder,) = package.variants.values()
    verified = verify_package(folder, indexed=None, cure=CURE)
    library = f"{package.id}.abi3.so"
    assert verified.contents["__init__.py"] == (folder / "__init__.py").read_bytes()
    assert os.pread(verified.natives[library], 1 << 20, 0) == (folder / library).read_bytes()
    assert verified.digest == sha256_hex((folder / "metadata.json").read_bytes())
    verified.close()


@pytest.mark.parametrize(
    "name", ["stray.py", "demo/stray.txt", "__pycache__/numbers.cpython-311.pyc", ".hidden"]
)
def test_verify_package_when_there_is_a_stray_file_then_refuses_by_name(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(IntegrityError, match="is not in the manifest: delete it") as caught:
        verify_package(folder, indexed=None, cure=CURE)
    assert str(folder / name) in str(caught.value)


def test_verify_package_when_there_is_a_stray_empty_folder_then_refuses(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(IntegrityError, match="empty is not in the manifest"):
        verify_package(folder, indexed=None, cure=CURE)


def test_verify_package_when_a_file_is_a_link_to_the_same_bytes_then_refuses(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "numbers.py").rename(tmp_path / "elsewhere.py")
    (folder / "numbers.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(IntegrityError, match=r"numbers\.py is a symbolic link"):
        verify_package(folder, indexed=None, cure=CURE)


def test_verify_package_when_a_file_is_a_fifo_then_refuses_without_waiting(folder: Path) -> None:
    (folder / "numbers.py").unlink()
    os.mkfifo(folder / "numbers.py")
    with pytest.raises(IntegrityError, match=r"numbers\.py is not a plain file"):
        verify_package(folder, indexed=None, cure=CURE)


@pytest.mark.parametrize("name", ["metadata.json", "numbers.py", "demo/__init__.py"])
def test_verify_package_when_a_file_is_missing_then_names_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(IntegrityError, match=r"is missing|is not in the manifest") as caught:
        verify_package(folder, indexed=None, cure=CURE)
    assert Path(name).parts[0] in str(caught.value)


@pytest.mark.parametrize("name", ["metadata.json", "numbers.py", "demo/table.txt"])
def test_verify_package_when_any_byte_flips_then_names_file_expected_and_got(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    index = parse_index((folder.parents[1] / "index.json").read_bytes(), origin="index.json")
    for position in range(0, len(whole), max(1, len(whole) // 16)):
        flipped = bytearray(whole)
        flipped[position] ^= 0x80
        (folder / name).write_bytes(flipped)
        with pytest.raises(IntegrityError) as caught:
            verify_package(folder, indexed=index.variants[folder.name], cure=CURE)
        expected = f"expected sha256 {sha256_hex(whole)}, got {sha256_hex(bytes(flipped))}: delete it"
        assert str(caught.value) == f"{folder / name} is corrupt: {expected}"


def test_verify_package_when_metadata_has_no_digest_then_refuses(folder: Path) -> None:
    path = folder / "metadata.json"
    metadata = parse_metadata(path.read_bytes(), origin="x")
    path.write_bytes(type(metadata)(**{**vars(metadata), "digest": None}).to_json())
    with pytest.raises(InvalidKernelError, match="has no digest"):
        verify_package(folder, indexed=None, cure=CURE)


def test_verify_package_when_it_refuses_then_leaves_no_descriptor_open(tmp_path: Path) -> None:
    package: Package = native_package(tmp_path)
    (folder,) = package.variants.values()
    library = folder / f"{package.id}.abi3.so"
    library.write_bytes(library.read_bytes() + b"\0")
    before = open_descriptors()
    with pytest.raises(IntegrityError, match=r"abi3\.so is corrupt"):
        verify_package(folder, indexed=None, cure=CURE)
    assert open_descriptors() == before
