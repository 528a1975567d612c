"""Falling back: only as far as is allowed, said once, and building from published source with the real builder."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from khub_process import Hub, StartHub
from packages import python_package

from hub_loader import (
    Environment,
    IntegrityError,
    NoMatchingVariantError,
    OfflineError,
    Torch,
    UsageError,
    detect_environment,
    get_kernel,
)
from hub_loader.bind import bind
from hub_loader.config import load_config
from hub_loader.errors import BuildConfigError, RepositoryNotFoundError
from hub_loader.fallback import Choice, Judge, fall_back, get_choices, record
from hub_loader.manifest import BackendInfo
from hub_loader.published_source import published_source, source_paths
from hub_loader.resolver import resolve
from hub_loader.source_build import build_kernel

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "tests" / "build_matrix"
NOARCH = KERNELS / "kernels" / "tiny-noarch"
CUDA = Environment(
    "cp311",
    "x86_64",
    "linux",
    (2, 36),
    Torch((2, 11), "2.11.0+cu130", (13, 0), True),
    tvm_ffi=(0, 1),
    compute_capabilities=((9, 0),),
)
CPU = replace(CUDA, torch=Torch((2, 11), "2.11.0+cpu", None, True), compute_capabilities=())
CHAIN = {
    "torch211-cxx11-cu130-x86_64-linux": "exact",
    "torch-stable-abi210-cu130-x86_64-linux": "stable-abi",
    "tvm-ffi01-cu130-x86_64-linux": "tvm-ffi",
    "torch-cuda": "noarch",
    "torch-cpu": "cpu",
}


def judging(environment: Environment, variants: dict[str, BackendInfo]) -> Judge:
    return lambda backend: resolve(environment, variants, backend)


def infos(*names: str) -> dict[str, BackendInfo]:
    return dict.fromkeys(names, BackendInfo("any"))


def test_fall_back_then_takes_one_step_after_the_other() -> None:
    names = list(CHAIN)
    for position, (name, step) in enumerate(CHAIN.items()):
        choice = fall_back(
            "org/demo", CUDA, judging(CUDA, infos(*names[position:])), allow_cpu=True, allow_build=True
        )
        assert (choice.variant, choice.step) == (name, step)
        assert len(choice.decisions) == len(names) - position
    last = fall_back("org/demo", CUDA, judging(CUDA, {}), allow_cpu=True, allow_build=True)
    assert (last.variant, last.step, last.backend) == (None, "build", "cuda")


def test_fall_back_when_nothing_more_is_allowed_then_refuses_and_names_what_could_be() -> None:
    with pytest.raises(NoMatchingVariantError) as refused:
        fall_back("org/demo", CUDA, judging(CUDA, infos("torch-cpu", "torch211-cxx11-cu130-aarch64-linux")))
    message = str(refused.value)
    assert "torch-cpu is for cpu, and cuda is wanted" in message
    assert "is for aarch64-linux, this machine is x86_64-linux" in message
    assert "allow_cpu=True would take torch-cpu" in message
    assert "allow_build=True would compile it here" in message
    assert "\n" not in message


def test_fall_back_when_cuda_is_asked_for_on_a_cpu_machine_then_says_no_whatever_there_is() -> None:
    for names in (CHAIN, ["torch-universal"], ["torch-cuda"]):
        with pytest.raises(NoMatchingVariantError, match="needs a torch built for CUDA"):
            fall_back("org/demo", CPU, judging(CPU, infos(*names)), "cuda")


def test_fall_back_when_a_backend_is_named_then_the_cpu_is_no_substitute() -> None:
    with pytest.raises(NoMatchingVariantError) as refused:
        fall_back("org/demo", CUDA, judging(CUDA, infos("torch-cpu")), "cuda")
    assert "allow_cpu" not in str(refused.value)
    with pytest.raises(UsageError, match="allow_cpu has nothing to allow"):
        fall_back("org/demo", CUDA, judging(CUDA, infos("torch-cpu")), "cuda", allow_cpu=True)
    assert fall_back("org/demo", CUDA, judging(CUDA, infos("torch-cpu")), "cpu").step == "noarch"


def test_fall_back_when_no_compiler_is_offered_for_the_backend_then_building_is_no_step() -> None:
    xpu = replace(CUDA, torch=Torch((2, 11), "2.11.0+xpu", None, True, xpu=(2025, 2)))
    with pytest.raises(NoMatchingVariantError) as refused:
        fall_back("org/demo", xpu, judging(xpu, infos("torch-cuda")), allow_build=True)
    assert "allow_build" not in str(refused.value)


def test_record_then_logs_once_and_a_substitute_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    commit = secrets.token_hex(20)
    usual = fall_back("org/demo", CUDA, judging(CUDA, infos(*CHAIN)))
    substitute = fall_back("org/demo", CUDA, judging(CUDA, infos("torch-cpu")), allow_cpu=True)
    with caplog.at_level(logging.INFO, "hub_loader"):
        for choice in (usual, substitute, usual, substitute):
            record(choice, commit)
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("INFO", f"org/demo: {usual.variant} (exact): built for exactly this torch; the best fit"),
        (
            "WARNING",
            "org/demo: torch-cpu (cpu): no variant fits cuda, and the CPU is allowed: "
            "needs no compiled code; the best fit",
        ),
    ]
    assert [choice for at, choice in get_choices() if at == commit] == [usual, substitute]
    assert all(isinstance(choice, Choice) for _, choice in get_choices())


@pytest.mark.slow
def test_build_kernel_then_builds_what_fits_once_with_progress_and_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    environment, said = detect_environment(), list[str]()
    built = build_kernel("org/tiny", NOARCH, environment, "cpu", tmp_path, say=said.append)
    assert built.variant == "torch-cpu"
    assert f"org/tiny: building torch-cpu from {NOARCH}" in said
    assert len(said) > 2
    said.clear()
    assert build_kernel("org/tiny", NOARCH, environment, "cpu", tmp_path, say=said.append) == built
    assert said == []
    assert list((tmp_path / "tmp").iterdir()) == []
    import torch

    module = bind(built.verify())
    assert torch.equal(module.scale(torch.ones(2)), torch.full((2,), 3.0))
    (built.package / "build/torch-cpu/op.py").write_text("tampered")
    with pytest.raises(IntegrityError, match=f"delete the folder {built.package}, it will be built again"):
        built.verify()


@pytest.mark.slow
def test_build_kernel_when_the_source_changes_then_builds_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    source, environment = tmp_path / "source", detect_environment()
    shutil.copytree(NOARCH, source)
    first = build_kernel("org/tiny", source, environment, "cpu", tmp_path)
    factor = source / "torch-ext/tiny_noarch/data/factor.json"
    factor.write_text(json.dumps(json.loads(factor.read_text())) + "\n\n")
    assert build_kernel("org/tiny", source, environment, "cpu", tmp_path).package != first.package


def test_build_kernel_when_nothing_that_can_be_built_fits_then_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(NoMatchingVariantError, match=r"as far as it can be built,.*torch built for CUDA"):
        build_kernel("org/tiny", NOARCH, CPU, "cuda", tmp_path)
    with pytest.raises(UsageError, match=r"holds no build\.toml"):
        build_kernel("org/tiny", tmp_path, CPU, None, tmp_path)
    assert not (tmp_path / "builds").exists()


def test_build_kernel_when_the_builder_refuses_then_raises_its_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    source = tmp_path / "source"
    shutil.copytree(NOARCH, source)
    (source / "build.toml").write_text("[general]\nname = 3\n")
    with pytest.raises(BuildConfigError, match=r"org/tiny could not be built from source: .*build\.toml"):
        build_kernel("org/tiny", source, CPU, None, tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_build_kernel_in_a_bare_install_says_what_to_install(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "hub_loader", tmp_path / "bare" / "hub_loader")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'bare')!r})\n"
        "from pathlib import Path\n"
        "from hub_loader import detect_environment\n"
        "from hub_loader.source_build import build_kernel\n"
        "try: build_kernel('org/tiny', Path(sys.argv[1]), detect_environment(), None, Path(sys.argv[2]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-S", "-I", "-c", code, str(NOARCH), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == (
        "MissingExtraError org/tiny: building from source needs the builder: pip install 'kernel-hub[build]'\n"
    )


@pytest.mark.slow
def test_build_kernel_of_cpp_source_compiles_it_and_its_operator_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    built = build_kernel("org/tiny-relu", KERNELS / "tiny-relu", detect_environment(), "cpu", tmp_path)
    assert built.variant.startswith("torch-stable-abi")
    module = bind(built.verify())
    assert torch.equal(module.relu(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


@pytest.fixture
def registry(start_hub: StartHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A registry of this test's own, which HF_ENDPOINT names, with an empty cache."""
    hub = start_hub(tmp_path / "hub")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return hub


def publish_source(hub: Hub, folder: Path, repo_id: str) -> str:
    """Upload `folder` beside a file of a built variant; returns the commit."""
    api = HfApi(hub.url, token=hub.token(repo_id.partition("/")[0]))
    api.create_repo(repo_id, repo_type="kernel")
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files |= {"build/torch-cpu/__init__.py": b"", "index.json": b"{}", "README.md": b"# tiny\n"}
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit(repo_id, operations, commit_message="source", repo_type="kernel").oid


@pytest.mark.slow
def test_published_source_is_fetched_once_proven_and_builds(
    registry: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    commit = publish_source(registry, NOARCH, "org/tiny")
    config = load_config()
    source = published_source(config, "org/tiny", commit)
    files = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    assert files == {
        p.relative_to(NOARCH).as_posix(): p.read_bytes() for p in NOARCH.rglob("*") if p.is_file()
    }
    registry.stop()
    assert published_source(replace(config, offline=True), "org/tiny", commit) == source
    assert build_kernel("org/tiny", source, detect_environment(), "cpu", config.cache).variant == "torch-cpu"


def test_published_source_when_the_hub_sends_other_bytes_then_refuses_and_keeps_nothing(
    registry: Hub,
) -> None:
    commit = publish_source(registry, NOARCH, "org/tiny")
    build_toml = (NOARCH / "build.toml").read_bytes()
    (stored,) = (p for p in registry.data.rglob("*") if p.is_file() and p.read_bytes() == build_toml)
    stored.chmod(0o644)
    stored.write_bytes(build_toml.replace(b"MIT", b"TIM"))
    with pytest.raises(IntegrityError, match=r"build\.toml of org/tiny: the hub sent other bytes"):
        published_source(load_config(), "org/tiny", commit)
    assert not (load_config().cache / "sources").exists()


def test_published_source_when_there_is_none_then_says_which_it_is(registry: Hub, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    commit = publish_source(registry, tmp_path / "empty", "org/binary-only")
    config = load_config()
    with pytest.raises(NoMatchingVariantError, match="org/binary-only publishes no source"):
        published_source(config, "org/binary-only", commit)
    with pytest.raises(RepositoryNotFoundError, match="org/nowhere"):
        published_source(config, "org/nowhere", commit)
    with pytest.raises(OfflineError, match="unset it"):
        published_source(replace(config, offline=True), "org/tiny", commit)


def test_source_paths_are_those_beside_the_variants() -> None:
    paths = ["build.toml", "csrc/a.cpp", "build/torch-cpu/__init__.py", "index.json", "README.md"]
    assert source_paths(paths) == ["build.toml", "csrc/a.cpp"]
    assert source_paths(["csrc/a.cpp"]) == []


@pytest.mark.slow
def test_get_kernel_with_allow_build_compiles_the_published_source_and_says_so(
    registry: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    published = tmp_path / "published"
    python_package(published, variants=("torch-cuda",))
    source = tmp_path / "source"  # not the one that other tests have built in this process
    shutil.copytree(NOARCH, source)
    (source / "torch-ext/tiny_noarch/data/factor.json").write_text("5.0")
    files = {path: root for root in (source, published) for path in root.rglob("*") if path.is_file()}
    api = HfApi(registry.url, token=registry.token("org"))
    api.create_repo("org/cuda-only", repo_type="kernel")
    operations = [
        CommitOperationAdd(path.relative_to(root).as_posix(), path.read_bytes())
        for path, root in files.items()
    ]
    commit = api.create_commit("org/cuda-only", operations, commit_message="both", repo_type="kernel").oid
    with pytest.raises(NoMatchingVariantError, match="allow_build=True would compile it here"):
        get_kernel("org/cuda-only", revision=commit, trust_remote_code=True)
    with caplog.at_level("WARNING", logger="hub_loader"):
        kernel = get_kernel("org/cuda-only", revision=commit, allow_build=True, trust_remote_code=True)
    assert torch.equal(kernel.scale(torch.ones(2)), torch.full((2,), 5.0))
    assert "building is allowed" in caplog.text
    assert [(at, choice.step, choice.variant) for at, choice in get_choices()][-1] == (
        commit,
        "build",
        "torch-cpu",
    )
