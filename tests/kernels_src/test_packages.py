"""What holds for all kernel packages: files they share, and what their Python faces may import."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent.parent / "kernels_src"
PACKAGES = sorted(path.parent for path in KERNELS.glob("*/build.toml"))

packages = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)


@pytest.mark.parametrize("shared", ["csrc/scalar.h", "csrc/cpu/lanes.h", "csrc/cuda/device.h"])
def test_a_header_that_every_package_copies_is_the_same_in_all(shared):
    assert len({(package / shared).read_text() for package in PACKAGES}) == 1


@packages
def test_a_package_names_every_source_it_has_and_no_other(package):
    text = (package / "build.toml").read_text()
    for path in (package / "csrc").rglob("*.*"):
        assert text.count(f'"{path.relative_to(package)}"') == (2 if path.parent.name == "csrc" else 1)


@packages
def test_a_kernel_source_includes_no_torch_header(package):
    for path in (package / "csrc").rglob("*.*"):
        assert "<torch/" not in path.read_text(), path


@packages
def test_a_python_face_imports_the_standard_library_torch_and_itself_only(package):
    for path in (package / "torch-ext").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 9))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module or "")
            for name in names:
                assert name.split(".")[0] in {"torch", *sys.stdlib_module_names}, f"{path} imports {name}"
