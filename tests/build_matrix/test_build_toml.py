"""`build.toml`: the Hub's edition 5, every key known or refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from build_matrix.build_toml import read_build_file
from hub_loader.errors import BuildConfigError

TINY = Path(__file__).with_name("tiny-relu")


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "tiny-relu"))


def edit(kernel: Path, old: str, new: str) -> None:
    path = kernel / "build.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_read_build_file_of_a_whole_kernel_gives_every_part() -> None:
    build = read_build_file(TINY)
    assert (build.general.name, build.general.version, build.general.backends) == (
        "tiny-relu",
        1,
        ("cpu", "cuda"),
    )
    assert build.framework.stable_abi is not None
    assert build.framework.stable_abi["cpu"] == (2, 10)
    cpu, cuda = build.components
    assert (cpu.backend, cuda.cuda_capabilities) == ("cpu", ("8.0", "9.0+PTX"))
    assert build.python_sources == TINY / "torch-ext" / "tiny_relu"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("license =", "licence =", "unknown key 'licence'; did you mean 'license'?"),
        (
            'backend = "cpu"',
            'backend = "cpu"\ncuda-capabilities = ["8.0"]',
            "unknown key 'cuda-capabilities'",
        ),
        ("edition = 5", "edition = 6", "edition 6 is unknown: 5 is the newest"),
        ("version = 1\n", "", "the key 'version' is missing"),
        ("version = 1\n", 'version = "1"\n', "'version' must be of type int, not str"),
        ('name = "tiny-relu"', 'name = "Tiny_Relu"', "invalid kernel name 'Tiny_Relu'"),
        ('["cpu", "cuda"]', '["cpu", "cuda12"]', "unknown backend 'cuda12'"),
        ('stable-abi = "2.10"', 'stable-abi = "2"', "'stable-abi' must look like '2.10'"),
        ("csrc/relu.cpp", "csrc/missing.cpp", "'csrc/missing.cpp', which does not exist"),
        ("[torch]", "[tourch]", "exactly one of [torch]"),
        ("[general]", "[general", "build.toml:"),
    ],
)
def test_read_build_file_when_it_is_wrong_names_the_place_and_the_cure(
    kernel: Path, old: str, new: str, says: str
) -> None:
    edit(kernel, old, new)
    with pytest.raises(BuildConfigError) as error:
        read_build_file(kernel)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_read_build_file_of_a_folder_without_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(BuildConfigError, match=r"does not exist: name a folder that holds a build\.toml"):
        read_build_file(tmp_path)


def test_stable_abi_as_a_table_holds_for_the_backends_it_names(kernel: Path) -> None:
    edit(kernel, 'stable-abi = "2.10"', 'stable-abi = { cuda = "2.11" }')
    build = read_build_file(kernel)
    assert build.framework.stable_abi == {"cuda": (2, 11)}
