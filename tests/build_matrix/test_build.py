"""A kernel from source to package: the real headers, the real compiler, a real load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from build_matrix.audit import read_library
from build_matrix.build import toolchain
from build_matrix.build_toml import read_build_file
from build_matrix.compile import INCLUDE, compile_cell
from build_matrix.matrix import read_matrix
from build_matrix.plan import plan
from build_matrix.provenance import kernel_id
from build_matrix.toolchain.cache import ToolchainCache
from build_matrix.toolchain.host import find_compiler
from hub_loader.errors import CompileError, ToolchainError
from hub_loader.manifest import parse_index, parse_metadata, sha256_hex

TINY = Path(__file__).with_name("tiny-relu")
KHUB = [sys.executable, "-m", "hub_loader"]
STABLE, EXACT, CUDA = (
    "torch-stable-abi210-cpu-x86_64-linux",
    "torch213-cxx11-cpu-x86_64-linux",
    "torch-stable-abi210-cu130-x86_64-linux",
)
LOAD = """
import importlib.util, sys, torch
folder, name = sys.argv[1:]
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
x = torch.randn(1000)
assert torch.equal(module.relu(x), x.relu())
try:
    module.relu.__globals__["ops"].relu(torch.empty(3), x)
except RuntimeError as error:
    print(str(error).splitlines()[0])
from importlib import import_module
assert import_module(name + ".tiny_relu").relu is module.relu
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "tiny-relu"))


def khub(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*KHUB, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_build_of_cpu_variants_gives_a_package_that_loads_and_passes_its_audit(tmp_path: Path) -> None:
    out = tmp_path / "package"
    khub("build", TINY, "--select", "torch{-stable-abi*,213-*}-cpu-x86_64-*", "--out", out)
    index = parse_index((out / "index.json").read_bytes(), origin="index.json")
    assert (index.name, index.version, sorted(index.variants)) == ("tiny-relu", 1, [STABLE, EXACT])
    for name, variant in index.variants.items():
        folder = out / "build" / name
        data = (folder / "metadata.json").read_bytes()
        metadata = parse_metadata(data, origin=name)
        assert (sha256_hex(data), metadata.id) == (variant.metadata.sha256, variant.id)
        on_disk = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert on_disk == {"metadata.json", *variant.files} == {"metadata.json", *(metadata.digest or {})}
        assert all(sha256_hex((folder / p).read_bytes()) == e.sha256 for p, e in variant.files.items())
        load = [sys.executable, "-B", "-c", LOAD, folder, variant.id]
        done = subprocess.run(load, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "relu: out has 3 elements, input has 1000" in done.stdout  # numbers are formatted: facets work
    assert len({variant.id for variant in index.variants.values()}) == 2
    assert "keeps its promises" in khub("audit", out).stdout


def test_build_twice_reuses_and_a_changed_source_gets_another_id(kernel: Path, tmp_path: Path) -> None:
    out = tmp_path / "package"
    arguments = ("build", kernel, "--select", STABLE, "--out", out, "--json")
    khub(*arguments)
    before = (out / "index.json").read_bytes()
    again = json.loads(khub(*arguments).stdout)
    assert again["cells"][0]["reused"] is True
    assert again["downloaded"] == {"bytes": 0, "torch_headers": 0}
    assert (out / "index.json").read_bytes() == before
    (kernel / "csrc" / "relu.cpp").write_text(
        (kernel / "csrc" / "relu.cpp").read_text() + f"// {uuid.uuid4()}\n"
    )
    assert json.loads(khub(*arguments).stdout)["cells"][0]["reused"] is False
    index = parse_index((out / "index.json").read_bytes(), origin="index.json")
    assert index.variants[STABLE].id not in before.decode()


def test_build_in_another_folder_gives_the_same_bytes(kernel: Path, tmp_path: Path) -> None:
    matrix, cache, compiler = read_matrix(), ToolchainCache(), find_compiler()
    libraries = []
    for number, folder in enumerate((TINY, kernel)):
        build = read_build_file(folder)
        cell = plan(build, matrix)[0][0]
        tools = toolchain(cache, compiler, matrix, cell)
        store = tmp_path / f"store{number}"
        store.mkdir()
        made = compile_cell(build, cell, kernel_id(build, cell), tools, store)
        libraries.append(made.library.read_bytes())
    assert libraries[0] == libraries[1]


def test_build_of_a_broken_source_names_the_error_and_the_log_and_writes_no_package(
    kernel: Path, tmp_path: Path
) -> None:
    (kernel / "csrc" / "relu.cpp").write_text('#include "relu.h"\nthis is not C++\n')
    done = khub(
        "build", kernel, "--select", STABLE, "--out", tmp_path / "package", code=CompileError.exit_code
    )
    assert "relu.cpp:2" in done.stderr
    log = done.stderr.split("whole log: ")[1].split(")")[0]
    assert "this" in Path(log).read_text()
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize(
    ("code", "symbol"),
    [
        (
            '#include <unistd.h>\n#include <sys/random.h>\nextern "C" int gettid_new() { return gettid(); }',
            "gettid",
        ),
        (
            'extern "C" int aoti_torch_unheard_of();\nint use() { return aoti_torch_unheard_of(); }',
            "unheard_of",
        ),
    ],
)
def test_build_that_needs_more_than_the_target_offers_fails_to_link(
    kernel: Path, tmp_path: Path, code: str, symbol: str
) -> None:
    path = kernel / "csrc" / "relu.cpp"
    path.write_text(path.read_text() + code + "\n")
    done = khub(
        "build", kernel, "--select", STABLE, "--out", tmp_path / "package", code=CompileError.exit_code
    )
    assert f"undefined reference to `{symbol}" in done.stderr or symbol in done.stderr


def test_build_that_needs_more_of_libstdcxx_than_the_oldest_takes_it_from_the_archive(
    kernel: Path, tmp_path: Path
) -> None:
    path = kernel / "csrc" / "relu.cpp"
    text = path.read_text()
    uses = "char text[32]; auto [end, code] = std::to_chars(text, text + 32, 0.25 * count);"
    (head, _, tail) = text.partition("{\n")
    path.write_text(
        f"#include <charconv>\n{head}{{\n  {uses}\n  if (code != std::errc{{}}) return text;\n{tail}"
    )
    khub("build", kernel, "--select", STABLE, "--out", tmp_path / "package")
    index = parse_index((tmp_path / "package" / "index.json").read_bytes(), origin="index.json")
    folder = tmp_path / "package" / "build" / STABLE
    load = [sys.executable, "-B", "-c", LOAD, folder, index.variants[STABLE].id]
    done = subprocess.run(load, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "relu: out has 3 elements, input has 1000" in done.stdout  # the streams' facets are still shared


def test_build_with_an_unknown_key_exits_with_its_own_code_and_one_line(kernel: Path) -> None:
    path = kernel / "build.toml"
    path.write_text(path.read_text().replace("license", "licence"))
    done = khub("build", kernel, code=20)
    assert done.stderr.count("\n") == 1
    assert "did you mean 'license'" in done.stderr


def test_a_string_of_the_old_abi_uses_the_empty_string_of_the_shared_library(tmp_path: Path) -> None:
    """A copy in the kernel would have another address, by which libstdc++ in torch tells what not to free."""
    (tmp_path / "empty.cpp").write_text("#include <string>\nstd::string empty() { return std::string(); }\n")
    flags = ["-O2", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-D_GLIBCXX_USE_CXX11_ABI=0"]
    command = [find_compiler().path, *flags, "-include", INCLUDE / "baseline.h", "-c", "empty.cpp"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with (tmp_path / "empty.o").open("rb") as file:
        symbols = {s.name: s["st_shndx"] for s in ELFFile(file).get_section_by_name(".symtab").iter_symbols()}
    assert symbols["_ZNSs4_Rep20_S_empty_rep_storageE"] == "SHN_UNDEF"


def test_find_compiler_without_one_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolchainError, match=r"install g\+\+"):
        find_compiler()


def test_provide_when_making_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = ToolchainCache(tmp_path)

    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.provide("part", "key", interrupted)
    assert list(tmp_path.iterdir()) == []
    made = cache.provide("part", "key", lambda folder: (folder / "whole").touch())
    assert cache.provide("part", "key", interrupted) == made


def test_provide_of_a_part_whose_folder_looks_old_is_not_taken_for_left_behind(tmp_path: Path) -> None:
    """A package sets the time of the folder that it is unpacked into; another process cleans up meanwhile."""

    def unpack(folder: Path) -> None:
        os.utime(folder, (0, 0))
        ToolchainCache(tmp_path).provide("other", "key", lambda other: (other / "file").touch())
        (folder / "package").touch()

    made = ToolchainCache(tmp_path).provide("part", "key", unpack)
    assert [path.name for path in made.iterdir()] == ["package"]


@pytest.mark.slow
def test_build_of_the_cuda_variant_needs_no_gpu_and_holds_the_archs_it_claims(tmp_path: Path) -> None:
    out = tmp_path / "package"
    khub("build", TINY, "--select", CUDA, "--out", out)
    index = parse_index((out / "index.json").read_bytes(), origin="index.json")
    variant = index.variants[CUDA]
    assert variant.backend.archs == ("8.0", "9.0+PTX")
    library = read_library(out / "build" / CUDA / f"{variant.id}.abi3.so")
    assert library.capabilities == ("8.0", "9.0+PTX")
    assert "libcudart.so.13" in library.needed


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("select", "machine", "needed"),
    [
        ("*stable*cpu-aarch64*", "EM_AARCH64", "libc.so.6"),
        ("*stable*cu130-aarch64*", "EM_AARCH64", "libcudart.so.13"),
        ("*stable*cu124-x86_64*", "EM_X86_64", "libcudart.so.12"),
    ],
)
def test_build_for_another_arch_and_for_cuda_12_keeps_its_promises(
    tmp_path: Path, select: str, machine: str, needed: str
) -> None:
    out = tmp_path / "package"
    khub("build", TINY, "--select", select, "--out", out)
    library = read_library(next(out.rglob("*.abi3.so")))
    assert library.machine == machine
    assert needed in library.needed
    assert "keeps its promises" in khub("audit", out).stdout
