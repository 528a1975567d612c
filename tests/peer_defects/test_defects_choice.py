"""Choice: the same variant every time, the one built for this torch, and names read as they are written."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from clients import Client
from packages import Package, write_package

from hub_loader import Environment, Torch, detect_environment
from hub_loader.manifest import BackendInfo
from hub_loader.resolver import resolve
from hub_loader.variant import parse_variant

Plain = Callable[..., Package]
PEER = Path(__file__).parents[1] / "hub_loader" / "peer_resolver.py"
NOARCH, NATIVE = "torch-cpu", f"tvm-ffi01-cpu-{detect_environment().arch}-linux"
TVM_FFI = "Metadata-Version: 2.1\nName: apache-tvm-ffi\nVersion: 0.1.0\n"


def here(*, python: str = "cp311", cuda: tuple[int, int] = (13, 0)) -> Environment:
    torch = Torch((2, 11), "2.11.0", cuda=cuda, cxx11_abi=True)
    return Environment(python=python, arch="x86_64", os="linux", glibc=(2, 36), torch=torch)


def accepted(client: Client, environment: Environment, names: list[str]) -> list[str]:
    """What the client's resolver accepts for CUDA in that environment, best first."""
    if client.kind == "ours":
        decisions = resolve(environment, {name: BackendInfo("cuda") for name in names}, "cuda")
        assert all(decision.accepted or decision.reason for decision in decisions)
        assert {decision.variant for decision in decisions} == {*names}
        return [decision.variant for decision in decisions if decision.accepted]
    torch = environment.torch
    assert torch is not None
    question = {
        "variants": names,
        "backend": ["cuda", torch.cuda],
        "arch": environment.arch,
        "os": environment.os,
        "torch": torch.version,
        "cxx11_abi": torch.cxx11_abi,
        "tvm_ffi": environment.tvm_ffi,
        "macos": environment.macos,
        "free_threaded": environment.python.endswith("t"),
    }
    done = subprocess.run(
        [client.python, PEER],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [str(name) for name in json.loads(done.stdout)]


def test_exact_build_beats_a_stable_abi_build_for_an_older_cuda(client: Client) -> None:
    exact, stable = "torch211-cxx11-cu132-x86_64-linux", "torch-stable-abi210-cu130-x86_64-linux"
    found = accepted(client, here(cuda=(13, 2)), [exact, stable])
    assert found == ([exact, stable] if client.kind == "ours" else [stable, exact])


def test_cuda_of_two_digits_after_the_point_is_read_as_written(client: Client) -> None:
    name = "torch211-cxx11-cu1310-x86_64-linux"
    read = (
        "from kernels.variants import parse_variant; print(parse_variant(sys.argv[1]).arch.backend.version)"
    )
    if client.kind == "ours":
        assert parse_variant(name).backend.version == (13, 10)
    else:
        assert client.scenario(read, name) == "131.0"
    assert accepted(client, here(cuda=(13, 10)), [name]) == ([name] if client.kind == "ours" else [])


def test_free_threaded_python_gets_the_native_variant_built_for_it_and_reasons_for_the_others(
    client: Client,
) -> None:
    own = "cp313t-torch211-cxx11-cu130-x86_64-linux"
    names = [own, "torch211-cxx11-cu130-x86_64-linux", "torch-cuda"]
    found = accepted(client, here(python="cp313t"), names)
    assert found == ([own, "torch-cuda"] if client.kind == "ours" else ["torch-cuda"])


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A package with a Python-only and a tvm-ffi variant, each saying which it is; beside it, in site/, as much of
    tvm-ffi as is asked about: its version."""
    for number, name in enumerate((NOARCH, NATIVE)):
        files = {"__init__.py": f"def value():\n    return {name!r}\n".encode()}
        write_package(
            tmp_path / "tied", files, kernel_id=f"_demo_cpu_tied{number}", variants=(name,), has_index=False
        )
    info = tmp_path / "site" / "apache_tvm_ffi-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(TVM_FFI)
    (tmp_path / "site" / "tvm_ffi.py").write_text('__version__ = "0.1.0"\n')
    return tmp_path / "tied"


def test_choice_between_a_tvm_ffi_and_a_noarch_variant_is_the_same_in_every_process(
    client: Client, tied: Path
) -> None:
    code = "print(client.get_local_kernel(Path(sys.argv[1]), backend='cpu').value())"
    site = str(tied.parent / "site")
    seen = {client.scenario(code, tied, PYTHONHASHSEED=str(seed), site=site) for seed in range(8)}
    assert seen == ({NATIVE} if client.kind == "ours" else {NATIVE, NOARCH})
