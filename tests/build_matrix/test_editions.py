"""Older editions of `build.toml`, and that the current one passes through untouched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from build_matrix.build_file import BuildFile
from build_matrix.build_toml import read_build_file
from build_matrix.editions import to_current
from hub_loader.errors import BuildConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EDITION_1 = """
[general]
name = "old-kernel"

[torch]
src = ["b.cpp"]

[kernel.k]
cuda-capabilities = ["9.0"]
rocm-archs = ["gfx942"]
language = "cuda-hipify"
depends = ["torch"]
src = ["k.cu"]
"""
EDITION_2 = """
[general]
name = "old-kernel"
cuda-minver = "12.4"
cuda-maxver = "13.0"
python-depends = ["einops"]

[torch]
src = ["b.cpp"]

[kernel.k]
backend = "cuda"
depends = ["torch", "cutlass_3_6"]
src = ["k.cu"]
"""
EDITION_3 = """
[general]
name = "old-kernel"
license = "MIT"
backends = ["cuda", "xpu"]
"""
EDITION_4 = """
[general]
name = "old-kernel"
version = 3
license = "MIT"
backends = ["cpu"]

[torch]
stable-abi = "2.10"
src = ["b.cpp"]
"""


def read(folder: Path, text: str) -> BuildFile:
    face = folder / "torch-ext" / "old_kernel"
    face.mkdir(parents=True)
    (face / "__init__.py").touch()
    for source in ("b.cpp", "k.cu"):
        (folder / source).touch()
    (folder / "build.toml").write_text(text)
    return read_build_file(folder)


def licensed(text: str) -> str:
    return text.replace("[general]", '[general]\nlicense = "MIT"')


def test_edition_1_with_a_language_gives_a_component_for_each_backend(tmp_path: Path) -> None:
    build = read(tmp_path, licensed(EDITION_1))
    assert (build.general.version, build.general.backends) == (1, ("cuda", "rocm"))
    assert [(c.name, c.backend, c.cuda_capabilities) for c in build.components] == [
        ("k", "cuda", ("9.0",)),
        ("k_rocm", "rocm", ()),
    ]


def test_edition_1_universal_becomes_python_only_on_every_backend(tmp_path: Path) -> None:
    text = (
        '[general]\nname = "old-kernel"\nlicense = "MIT"\n[torch]\nuniversal = true\npyext = ["py", "json"]\n'
    )
    build = read(tmp_path, text)
    assert (build.framework.kind, build.framework.pyext) == ("torch-noarch", ("py", "json"))
    assert set(build.general.backends) >= {"cpu", "cuda", "metal", "rocm", "xpu"}


def test_edition_2_takes_backends_from_the_components_and_moves_cuda_bounds(tmp_path: Path) -> None:
    general = read(tmp_path, licensed(EDITION_2)).general
    assert general.backends == ("cuda",)
    assert (general.cuda_minver, general.cuda_maxver) == ((12, 4), (13, 0))
    assert general.python_depends == ("einops",)


def test_edition_3_without_a_framework_is_python_only(tmp_path: Path) -> None:
    build = read(tmp_path, EDITION_3)
    assert (build.framework.kind, build.general.version) == ("torch-noarch", 1)


def test_edition_4_is_read_as_it_is(tmp_path: Path) -> None:
    build = read(tmp_path, EDITION_4)
    assert build.general.version == 3
    assert (build.framework.stable_abi or {})["cpu"] == (2, 10)


@pytest.mark.parametrize("text", [EDITION_1, EDITION_2])
def test_an_old_file_without_a_license_is_asked_for_one(tmp_path: Path, text: str) -> None:
    with pytest.raises(BuildConfigError, match=r"\[general\] the key 'license' is missing"):
        read(tmp_path, text)


def test_a_file_that_names_its_edition_is_not_touched() -> None:
    data = tomllib.loads(EDITION_2.replace("[general]", "[general]\nedition = 5"))
    assert to_current(data) is data


@pytest.mark.parametrize(
    "data", [{}, {"general": 1}, {"general": {}, "kernel": 3}, {"general": {}, "kernel": {"k": 1}}]
)
def test_what_is_malformed_is_left_to_the_reader(data: dict[str, object]) -> None:
    assert to_current(data) is data
