"""Verification of a folder: exactly the manifest's files, with their bytes, as plain files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from packages import Package, compile_native, native_package, python_package, unique_id, write_package

from hub_loader import IntegrityError, InvalidKernelError
from hub_loader.bind import bind
from hub_loader.manifest import parse_index, parse_metadata, sha256_hex
from hub_loader.sealed import MAX_SEALED_BYTES
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


def rewrite_in_place(path: Path, data: bytes) -> None:
    """Other bytes in the same inode."""
    inode = path.stat().st_ino
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()
    assert path.stat().st_ino == inode


def test_verify_package_when_a_library_is_rewritten_in_place_afterwards_then_the_proven_bytes_run(
    tmp_path: Path,
) -> None:
    package = native_package(tmp_path, answer=42)
    (folder,) = package.variants.values()
    library = f"{package.id}.abi3.so"
    whole = (folder / library).read_bytes()
    (tmp_path / "other").mkdir()
    verified = verify_package(folder, indexed=None, cure=CURE)
    rewrite_in_place(folder / library, compile_native(package.id, tmp_path / "other", 43))
    assert os.pread(verified.natives[library], 1 << 20, 0) == whole
    assert bind(verified).answer() == 42
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if package.id in line]
    assert mapped and all(f"/memfd:{library}" in line for line in mapped)  # profilers can tell which it is


def test_verify_package_then_nobody_can_write_to_the_proven_library(tmp_path: Path) -> None:
    package = native_package(tmp_path)
    (folder,) = package.variants.values()
    verified = verify_package(folder, indexed=None, cure=CURE)
    (descriptor,) = verified.natives.values()
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.write(again, b"x")
    with pytest.raises(PermissionError):
        os.truncate(again, 0)
    os.close(again)
    verified.close()


def test_verify_package_when_the_folder_is_a_users_own_then_libraries_keep_their_path(tmp_path: Path) -> None:
    package = native_package(tmp_path)
    (folder,) = package.variants.values()
    verified = verify_package(folder, indexed=None, cure=CURE, is_own=True)
    (descriptor,) = verified.natives.values()
    assert os.readlink(f"/proc/self/fd/{descriptor}") == str(folder / f"{package.id}.abi3.so")
    verified.close()


def test_verify_package_when_a_library_is_large_then_it_is_not_copied(tmp_path: Path) -> None:
    files = {"__init__.py": b"", "large.so": bytes(MAX_SEALED_BYTES + 1)}
    (folder,) = write_package(tmp_path, files, kernel_id=unique_id()).variants.values()
    verified = verify_package(folder, indexed=None, cure=CURE)
    assert os.readlink(f"/proc/self/fd/{verified.natives['large.so']}") == str(folder / "large.so")
    verified.close()


def test_verify_package_when_a_library_has_a_long_name_then_it_is_sealed_too(tmp_path: Path) -> None:
    files = {"__init__.py": b"", "ä" * 120 + ".so": b"x"}
    (folder,) = write_package(tmp_path, files, kernel_id=unique_id()).variants.values()
    verified = verify_package(folder, indexed=None, cure=CURE)
    assert os.readlink(f"/proc/self/fd/{verified.natives['ä' * 120 + '.so']}").startswith("/memfd:ää")
    verified.close()


def test_verify_package_when_it_refuses_then_leaves_no_descriptor_open(tmp_path: Path) -> None:
    package: Package = native_package(tmp_path)
    (folder,) = package.variants.values()
    library = folder / f"{package.id}.abi3.so"
    library.write_bytes(library.read_bytes() + b"\0")
    before = open_descriptors()
    with pytest.raises(IntegrityError, match=r"abi3\.so is corrupt"):
        verify_package(folder, indexed=None, cure=CURE)
    assert open_descriptors() == before
