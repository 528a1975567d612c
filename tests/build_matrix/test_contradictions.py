"""A `build.toml` that contradicts itself, its folder or the compilers: one line with place and cure."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from build_matrix.build_toml import read_build_file
from build_matrix.capabilities import component_capabilities, cuda_capabilities, union
from build_matrix.matrix import read_matrix
from build_matrix.plan import plan
from hub_loader.errors import BuildConfigError

TINY = Path(__file__).with_name("tiny-relu")
MATRIX = read_matrix()
CUDA_13 = MATRIX.cuda[13, 0]


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "tiny-relu"))


def edit(kernel: Path, old: str, new: str) -> None:
    path = kernel / "build.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            '["cpu", "cuda"]',
            '["cpu"]',
            "[kernel.relu_cuda] has backend = 'cuda', which [general] 'backends' does not name",
        ),
        ('["cpu", "cuda"]', '["cpu", "cuda", "cpu"]', "'backends' names 'cpu' twice"),
        ('["cpu", "cuda"]', "[]", "'backends' is empty"),
        (
            '"2.10"\n',
            '"2.10"\nminver = "2.12"\nmaxver = "2.11"\n',
            "[torch] 'minver' 2.12 is above 'maxver' 2.11",
        ),
        (
            "[torch]",
            '[general.cuda]\nminver = "13.0"\nmaxver = "12.4"\n[torch]',
            "[general.cuda] 'minver' 13.0 is above",
        ),
        (
            "depends = []",
            'depends = ["cutlas_3_6"]',
            "[kernel.relu_cpu] 'depends' names 'cutlas_3_6', which is unknown",
        ),
        (
            '"csrc/relu.cpp"',
            '"csrc/relu.cpp", "./csrc/relu.cpp"',
            "[kernel.relu_cpu] compiles './csrc/relu.cpp' for 'cpu'",
        ),
        ('["torch-ext/torch_binding.cpp"]', '["csrc/relu.cpp"]', "so does [torch]: name it once"),
        ('"9.0+PTX"', '"sm_90"', "[kernel.relu_cuda] names the CUDA capability 'sm_90': write e.g. '9.0'"),
        (
            '"csrc/relu.cpp"',
            '"../tiny-relu/../outside.cpp"',
            "lies outside the kernel's folder: move it inside",
        ),
        (
            "[torch]",
            '[general.cuda]\nkernel-depends = [{ repo-id = "a/b" }]\n[torch]',
            "'kernel-depends' entries look like",
        ),
        (
            "license",
            'kernel-depends = [{ repo-id = "a/b", version = "1" }]\nlicense',
            "'kernel-depends' entries look like",
        ),
    ],
)
def test_read_build_file_of_a_contradiction_names_place_and_cure(
    kernel: Path, old: str, new: str, says: str
) -> None:
    (kernel.parent / "outside.cpp").touch()
    edit(kernel, old, new)
    with pytest.raises(BuildConfigError) as error:
        read_build_file(kernel)
    assert says in str(error.value)
    assert str(kernel / "build.toml") in str(error.value)
    assert "\n" not in str(error.value)


def test_read_build_file_of_a_face_with_a_generated_files_name_asks_to_rename_it(kernel: Path) -> None:
    (kernel / "torch-ext" / "tiny_relu" / "metadata.json").write_text("{}")
    with pytest.raises(
        BuildConfigError, match="'torch-ext/tiny_relu/metadata.json' has the name of a file that"
    ):
        read_build_file(kernel)


def test_plan_of_a_backend_without_a_component_is_python_only_and_says_so(kernel: Path) -> None:
    text = (kernel / "build.toml").read_text()
    (kernel / "build.toml").write_text(text[: text.index("[kernel.relu_cuda]")])
    cells, refused = plan(read_build_file(kernel), read_matrix())
    assert {cell.variant.backend.name for cell in cells if not cell.variant.is_noarch} == {"cpu"}
    assert [str(cell) for cell in cells if cell.variant.is_noarch] == ["torch-cuda"]
    reasons = {u.name: u.reason for u in refused}
    assert reasons["torch-cuda"] == "packaged as Python only, since no [kernel.NAME] has backend = 'cuda'"


def test_plan_of_capabilities_that_no_compiler_knows_names_those_it_knows(kernel: Path) -> None:
    edit(kernel, '["8.0", "9.0+PTX"]', '["99999.0"]')
    with pytest.raises(
        BuildConfigError, match=r"\[kernel.relu_cuda\] names .* 99999.0, .* name some of .*9.0"
    ):
        plan(read_build_file(kernel), MATRIX)


def test_plan_leaves_out_single_capabilities_that_a_compiler_lacks_and_says_so(kernel: Path) -> None:
    edit(kernel, '["8.0", "9.0+PTX"]', '["5.0", "8.0", "9.0a", "8.0a"]')
    cells, refused = plan(read_build_file(kernel), MATRIX)
    assert cells[-1].capabilities == ("8.0", "9.0a")
    assert refused[-1].reason == "built without 5.0, 8.0a of [kernel.relu_cuda], which CUDA 13.0 lacks"


def test_plan_of_a_library_that_pypi_lacks_refuses_that_backend_alone(kernel: Path) -> None:
    edit(kernel, 'backend = "cuda"\ndepends = []', 'backend = "cuda"\ndepends = ["cutlass_2_10"]')
    cells, refused = plan(read_build_file(kernel), MATRIX)
    assert {cell.variant.backend.name for cell in cells} == {"cpu"}
    reasons = {one.reason for one in refused if "cu130" in one.name}
    assert any(
        "no PyPI package holds the headers of cutlass_2_10; there are: cutlass_3_5" in r for r in reasons
    )


def test_plan_of_a_library_makes_its_release_part_of_the_cell(kernel: Path) -> None:
    edit(kernel, 'backend = "cuda"\ndepends = []', 'backend = "cuda"\ndepends = ["cutlass_3_6"]')
    cells, _ = plan(read_build_file(kernel), MATRIX)
    assert {cell.packages for cell in cells if cell.cuda} == {("nvidia-cutlass==3.6.0.0",)}


def test_capabilities_hold_for_each_component_and_older_cuda_leaves_components_out() -> None:
    component = read_build_file(TINY).components[1]
    default = replace(component, name="b", cuda_capabilities=())
    newer = replace(component, name="c", cuda_capabilities=("12.1",), cuda_minver=(13, 1))
    archs, problems = cuda_capabilities([component, default, newer], CUDA_13)
    assert archs == ("8.0", "9.0+PTX", "10.0", "12.0")
    assert problems == []
    assert component_capabilities(component, CUDA_13) == ("8.0", "9.0+PTX")
    assert cuda_capabilities([newer], CUDA_13) == ((), ["every component asks for a newer CUDA than 13.0"])
    assert union(["9.0a", "9.0", "10.0f", "9.0+PTX"]) == ("9.0+PTX", "9.0a", "10.0f")


def test_plan_of_a_backend_that_the_matrix_has_no_build_for_says_why(kernel: Path) -> None:
    edit(kernel, 'stable-abi = "2.10"', "")
    cells, refused = plan(read_build_file(kernel), replace(MATRIX, torch=()))
    assert cells == []
    assert [one.name for one in refused] == ["cpu", "cuda"]
    assert "[torch] 'stable-abi' gives one" in refused[0].reason
