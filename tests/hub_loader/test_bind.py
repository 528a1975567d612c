"""Binding: what runs is what was verified, under its own id, and a failure leaves nothing behind."""

from __future__ import annotations

import importlib
import inspect
import linecache
import pkgutil
import sys
import traceback
from pathlib import Path
from types import ModuleType

import pytest
from packages import Package, native_package, python_package, unique_id, write_package

from hub_loader import InvalidKernelError, MissingDependencyError
from hub_loader.bind import bind
from hub_loader.verify import VerifiedPackage, verify_package


def verified(package: Package) -> VerifiedPackage:
    (folder,) = package.variants.values()
    return verify_package(folder, indexed=None, cure="")


def open_descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def package_of(folder: Path, *, name: str = "demo", kernel_id: str | None = None, **files: str) -> Package:
    sources = {f"{path}.py": text.encode() for path, text in files.items()}
    return write_package(folder, sources, kernel_id=kernel_id or unique_id(name), name=name)


def test_bind_when_native_then_the_module_sits_under_the_id(tmp_path: Path) -> None:
    package = native_package(tmp_path, answer=7)
    module = bind(verified(package))
    native = sys.modules[f"{package.id}.{package.id}"]
    assert module is sys.modules[package.id]
    assert module.answer() == native.answer() == 7
    assert native.__file__ == str(next(iter(package.variants.values())) / f"{package.id}.abi3.so")


def test_bind_when_files_change_after_verification_then_the_verified_bytes_run(tmp_path: Path) -> None:
    package, other = native_package(tmp_path / "a", answer=1), native_package(tmp_path / "b", answer=2)
    checked = verified(package)
    (folder,) = package.variants.values()
    (foreign,) = other.variants.values()
    library = folder / f"{package.id}.abi3.so"
    library.unlink()
    library.write_bytes((foreign / f"{other.id}.abi3.so").read_bytes())
    (folder / "__init__.py").write_text("raise RuntimeError('tampered')")
    assert bind(checked).answer() == 1


def test_bind_when_two_packages_are_native_then_each_keeps_its_own_library(tmp_path: Path) -> None:
    first = bind(verified(native_package(tmp_path / "a", answer=1)))
    second = bind(verified(native_package(tmp_path / "b", answer=2)))
    assert (first.answer(), second.answer()) == (1, 2)


def test_bind_when_the_same_digest_comes_again_then_returns_the_same_module(tmp_path: Path) -> None:
    package = native_package(tmp_path)
    first = bind(verified(package))
    before = len(open_descriptors())
    assert bind(verified(package)) is first
    assert len(open_descriptors()) == before


def test_bind_then_neither_reads_nor_writes_bytecode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    package = python_package(tmp_path, value=3)
    (folder,) = package.variants.values()
    checked = verified(package)
    for source in list(folder.rglob("*.py")):  # bytecode that the usual import system would trust
        cached = Path(importlib.util.cache_from_source(str(source)))
        cached.parent.mkdir(exist_ok=True)
        cached.write_bytes(b"poison")
    assert bind(checked).value() == 3
    assert all(path.read_bytes() == b"poison" for path in folder.rglob("*.pyc"))


def test_bind_when_a_submodule_is_only_on_disk_then_it_is_not_found(tmp_path: Path) -> None:
    package = python_package(tmp_path)
    checked = verified(package)
    (checked.folder / "stray.py").write_text("x = 1")
    bind(checked)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{package.id}.stray")


def test_bind_when_code_raises_then_the_traceback_shows_its_source(tmp_path: Path) -> None:
    module = bind(verified(package_of(tmp_path, __init__="def fail():\n    return 1 / 0  # here\n")))
    linecache.clearcache()
    (Path(module.__file__)).unlink()
    with pytest.raises(ZeroDivisionError) as caught:
        module.fail()
    assert "return 1 / 0  # here" in "".join(traceback.format_exception(caught.value))


def test_bind_when_source_is_inspected_then_shows_the_verified_text(tmp_path: Path) -> None:
    package = package_of(tmp_path, __init__="def kernel():\n    return 1\n")
    checked = verified(package)
    (checked.folder / "__init__.py").write_text("def kernel():\n    return 2\n")
    assert inspect.getsource(bind(checked).kernel) == "def kernel():\n    return 1\n"


def test_bind_when_code_asks_for_its_data_then_gets_the_verified_bytes(tmp_path: Path) -> None:
    package = python_package(tmp_path)
    bind(verified(package))
    assert pkgutil.get_data(f"{package.id}.demo", "table.txt") == b"one two\n"
    with pytest.raises(FileNotFoundError):
        pkgutil.get_data(f"{package.id}.demo", "../../../../index.json")


def test_bind_when_an_import_fails_half_way_then_sys_modules_is_as_before(tmp_path: Path) -> None:
    package = package_of(tmp_path, __init__="from . import part\nraise ValueError('two\\nlines')", part="")
    before = set(sys.modules)
    with pytest.raises(InvalidKernelError, match=r"demo .* fails to import: ValueError: two lines") as caught:
        bind(verified(package))
    assert set(sys.modules) == before
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(package.id)


def test_bind_when_the_id_is_taken_by_another_module_then_refuses_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = python_package(tmp_path)
    theirs = ModuleType(package.id)
    monkeypatch.setitem(sys.modules, package.id, theirs)
    with pytest.raises(InvalidKernelError, match="would shadow the module"):
        bind(verified(package))
    assert sys.modules[package.id] is theirs


def test_bind_when_the_id_names_a_module_not_yet_imported_then_refuses(tmp_path: Path) -> None:
    # _osx_support belongs to the standard library, and is a well-formed id for a kernel called "osx".
    package = package_of(tmp_path, name="osx", kernel_id="_osx_support", __init__="")
    with pytest.raises(InvalidKernelError, match=r"would shadow the module from .*_osx_support\.py"):
        bind(verified(package))


def test_bind_when_the_id_is_bound_to_other_bytes_then_refuses(tmp_path: Path) -> None:
    first = python_package(tmp_path / "a", value=1)
    second = python_package(tmp_path / "b", value=2, kernel_id=first.id)
    module = bind(verified(first))
    with pytest.raises(InvalidKernelError, match="is loaded from other bytes"):
        bind(verified(second))
    assert sys.modules[first.id] is module


def test_bind_when_a_python_dependency_is_too_old_then_says_what_to_install(tmp_path: Path) -> None:
    package = python_package(tmp_path, python_depends=("packaging>=1", "packaging>=1000"))
    with pytest.raises(MissingDependencyError, match=r"needs packaging>=1000: pip install 'packaging>=1000'"):
        bind(verified(package))


def test_bind_when_a_python_dependency_is_missing_then_says_what_to_install(tmp_path: Path) -> None:
    package = python_package(tmp_path, python_depends=("packaging", "not-installed-here"))
    with pytest.raises(
        MissingDependencyError, match="demo needs not-installed-here: pip install not-installed-here"
    ):
        bind(verified(package))
    assert package.id not in sys.modules
