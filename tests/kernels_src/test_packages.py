"""What holds for all kernel packages: files they share, and what their Python faces may import."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent.parent / "kernels_src"
PACKAGES = sorted(path.parent for path in KERNELS.glob("*/build.toml"))

packages = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)


@pytest.mark.parametrize(
    "shared",
    [
        "csrc/scalar.h",
        "csrc/cpu/lanes.h",
        "csrc/cuda/device.h",
        "csrc/cuda/hopper.h",
        "csrc/cuda/ptx.h",
        "torch-ext/share.h",
    ],
)
def test_a_header_that_packages_copy_is_the_same_in_all(shared):
    copies = [package / shared for package in PACKAGES if (package / shared).exists()]
    assert len(copies) > 1
    assert len({copy.read_text() for copy in copies}) == 1


@packages
def test_a_package_names_every_source_it_has_and_no_other(package):
    text = (package / "build.toml").read_text()
    backends = len(set(re.findall(r'^backend = "(.*)"', text, re.MULTILINE)))
    for path in (package / "csrc").rglob("*.*"):
        assert text.count(f'"{path.relative_to(package)}"') == (backends if path.parent.name == "csrc" else 1)


@packages
def test_a_kernel_source_includes_no_binding_header(package):
    for path in (package / "csrc").rglob("*.*"):
        assert "<torch/" not in path.read_text(), path
        assert "pybind11" not in path.read_text(), path


@packages
def test_a_python_face_imports_the_standard_library_its_framework_and_itself_only(package):
    (folder,) = package.glob("*-ext")
    framework = {"torch-ext": "torch", "pybind11-ext": "numpy"}[folder.name]
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 9))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module or "")
            for name in names:
                assert name.split(".")[0] in {framework, *sys.stdlib_module_names}, f"{path} imports {name}"
