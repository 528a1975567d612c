"""get_local_kernel: the same proofs for a folder, without a hub."""

from __future__ import annotations

import json
import py_compile
import sys
from pathlib import Path

import pytest
from packages import native_variant, python_package

import hub_loader
from hub_loader import get_local_kernel


@pytest.mark.parametrize("below", ["", "build", "build/torch-cpu"])
def test_get_local_kernel_when_given_package_build_or_variant_then_loads_it(
    tmp_path: Path, below: str
) -> None:
    package = python_package(tmp_path, value=4)
    module = get_local_kernel(tmp_path / below)
    assert module.value() == 4
    (loaded,) = [kernel for kernel in hub_loader.get_loaded_kernels() if kernel.metadata.id == package.id]
    assert (loaded.repo_info, loaded.variant) == (None, "torch-cpu")


def test_get_local_kernel_when_there_is_no_index_then_metadata_alone_proves_the_files(tmp_path: Path) -> None:
    package = python_package(tmp_path, value=4)
    (tmp_path / "index.json").unlink()
    (package.variants["torch-cpu"] / "numbers.py").write_text("VALUE = 5\n")
    with pytest.raises(hub_loader.IntegrityError, match=r"numbers\.py is corrupt"):
        get_local_kernel(tmp_path)
    (package.variants["torch-cpu"] / "numbers.py").write_text("VALUE = 4\n")
    assert get_local_kernel(tmp_path).value() == 4


def test_get_local_kernel_when_metadata_is_not_the_one_in_the_index_then_refuses(tmp_path: Path) -> None:
    package = python_package(tmp_path / "a")
    other = python_package(tmp_path / "b", value=9, kernel_id=package.id)
    package.variants["torch-cpu"].rename(tmp_path / "old")
    other.variants["torch-cpu"].rename(package.variants["torch-cpu"])
    with pytest.raises(hub_loader.IntegrityError, match=r"metadata\.json is corrupt"):
        get_local_kernel(tmp_path / "a")
    assert package.id not in sys.modules


def test_get_local_kernel_when_the_index_lists_other_files_than_metadata_then_refuses(tmp_path: Path) -> None:
    package = python_package(tmp_path)
    index = json.loads((tmp_path / "index.json").read_bytes())
    del index["variants"]["torch-cpu"]["files"]["numbers.py"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(hub_loader.InvalidKernelError, match=r"its digest is not what index\.json says"):
        get_local_kernel(tmp_path)
    assert package.id not in sys.modules


def test_get_local_kernel_when_a_variant_is_not_in_the_index_then_refuses(tmp_path: Path) -> None:
    package = python_package(tmp_path)
    package.variants["torch-cpu"].rename(tmp_path / "build/torch-universal")
    with pytest.raises(hub_loader.IntegrityError, match=r"torch-universal is not in .*index\.json"):
        get_local_kernel(tmp_path)


def test_get_local_kernel_when_several_fit_then_takes_the_best(tmp_path: Path) -> None:
    package = python_package(tmp_path, variants=("torch-cpu", native_variant()))
    assert get_local_kernel(tmp_path).__file__ == str(package.variants[native_variant()] / "__init__.py")


def test_get_local_kernel_when_the_variant_does_not_fit_then_says_why(tmp_path: Path) -> None:
    package = python_package(tmp_path, variants=("cp39-cpu-x86_64-linux",))
    with pytest.raises(hub_loader.NoMatchingVariantError, match="needs the interpreter cp39"):
        get_local_kernel(package.variants["cp39-cpu-x86_64-linux"])


def test_get_local_kernel_when_another_import_left_bytecode_then_it_is_passed_over_and_not_run(
    tmp_path: Path,
) -> None:
    package = python_package(tmp_path, value=4)
    (folder,) = package.variants.values()
    cache = folder / "__pycache__"
    cache.mkdir()
    (folder / "planted.py").write_text("VALUE = 5\n")
    py_compile.compile(
        str(folder / "planted.py"),
        cfile=str(cache / f"numbers.{sys.implementation.cache_tag}.pyc"),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    (folder / "planted.py").unlink()
    assert get_local_kernel(tmp_path).value() == 4
    other = python_package(tmp_path / "other")
    (folder,) = other.variants.values()
    (folder / "numbers.pyc").write_bytes(b"")
    with pytest.raises(hub_loader.IntegrityError, match=r"numbers\.pyc is not in the manifest"):
        get_local_kernel(tmp_path / "other")


@pytest.mark.parametrize("below", ["", "nothing"])
def test_get_local_kernel_when_there_is_no_package_then_says_what_to_pass(tmp_path: Path, below: str) -> None:
    with pytest.raises(hub_loader.UsageError, match="holds no kernel: pass a folder with build/<variant>"):
        get_local_kernel(tmp_path / below)
