"""Each kind of error, provoked as a stranger would: one line, with what was wrong and what to do about it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from khub_process import ROOT, khub_here
from packages import python_package
from static_hub import StaticHub

from hub_loader import errors, get_kernel
from hub_loader.errors import KernelHubError, LayerError, PolicyError, SelfTestError, SignatureError

TINY = ROOT / "tests" / "build_matrix" / "tiny-relu"
SHIPPED = ROOT / "engine" / "models" / "stdlib-llama"


@dataclass(frozen=True)
class Scene:
    """Where something goes wrong: a hub that serves org/demo, and an empty folder."""

    hub: StaticHub
    folder: Path
    patch: pytest.MonkeyPatch

    def publish(self, **options: object) -> Path:
        """Publish org/demo; returns its folder."""
        package = python_package(self.folder / "package", **options)  # type: ignore[arg-type]
        self.hub.publish("org/demo", "v1", package.folder)
        return package.folder

    def khub(self, error: type[KernelHubError], *arguments: str | Path) -> str:
        """The last line of what `khub ARGUMENTS` says, which must exit with that error's code."""
        done = khub_here(*arguments)
        assert done.returncode == error.exit_code, done.stderr
        said = done.stderr.splitlines()[-1]
        assert said.startswith("khub: ")
        return said


@pytest.fixture
def scene(hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    folder = tmp_path / "scene"
    folder.mkdir()
    yield Scene(hub, folder, monkeypatch)


Provoke = Callable[[Scene, type[KernelHubError]], str]
PROVOKED: dict[str, tuple[Provoke, tuple[str, ...]]] = {}


def provokes(error: type[KernelHubError], *words: str) -> Callable[[Provoke], Provoke]:
    """`words` are what its message has to say: what was wrong, and the cure."""

    def keep(provoke: Provoke) -> Provoke:
        PROVOKED[error.__name__] = (provoke, words)
        return provoke

    return keep


@provokes(errors.UsageError, "'demo'", "org/name")
def _misspelt(scene: Scene, error: type[KernelHubError]) -> str:
    return scene.khub(error, "get", "demo")


@provokes(errors.RepositoryNotFoundError, "'org/nothing'", "check the spelling")
def _unknown(scene: Scene, error: type[KernelHubError]) -> str:
    return scene.khub(error, "get", "org/nothing")


@provokes(errors.VersionNotFoundError, "org/demo has no v7", "it has v1")
def _no_version(scene: Scene, error: type[KernelHubError]) -> str:
    scene.publish()
    return scene.khub(error, "get", "org/demo", "--version", "7")


@provokes(
    errors.NoMatchingVariantError, "org/demo", "torch-cuda is for cuda, and cpu is wanted", "allow_build=True"
)
def _no_variant(scene: Scene, error: type[KernelHubError]) -> str:
    scene.publish(variants=("torch-cuda",))
    return scene.khub(error, "get", "org/demo")


@provokes(errors.IntegrityError, "numbers.py of org/demo", "ask the publisher to upload it again")
def _other_bytes(scene: Scene, error: type[KernelHubError]) -> str:
    scene.publish()
    scene.hub.replaced["numbers.py"] = b"VALUE = 2\n"
    return scene.khub(error, "get", "org/demo")


@provokes(errors.DownloadError, "numbers.py of org/demo", "got 3 bytes", "try again")
def _broken_off(scene: Scene, error: type[KernelHubError]) -> str:
    scene.publish()
    scene.hub.truncated["numbers.py"] = 3
    return scene.khub(error, "get", "org/demo")


@provokes(errors.InvalidKernelError, "org/demo", "'json', which could shadow a module")
def _bad_id(scene: Scene, error: type[KernelHubError]) -> str:
    scene.hub.signs = False  # nobody signs what cannot be parsed
    scene.publish(kernel_id="json")
    return scene.khub(error, "get", "org/demo")


@provokes(errors.OfflineError, "org/demo", "HF_HUB_OFFLINE", "unset it")
def _offline(scene: Scene, error: type[KernelHubError]) -> str:
    scene.patch.setenv("HF_HUB_OFFLINE", "1")
    return scene.khub(error, "get", "org/demo")


@provokes(errors.AuthenticationError, "org/demo", "401", "HF_TOKEN")
def _no_access(scene: Scene, error: type[KernelHubError]) -> str:
    scene.publish()
    scene.hub.status["/refs"] = (401, "")
    return scene.khub(error, "get", "org/demo")


@provokes(errors.CacheError, "kernel-hub", "set KERNELS_CACHE to another folder")
def _no_cache(scene: Scene, error: type[KernelHubError]) -> str:
    scene.publish()
    (scene.folder / "kernel-hub").touch()  # where the loader's own folder would be
    scene.patch.setenv("KERNELS_CACHE", str(scene.folder))
    return scene.khub(error, "get", "org/demo")


@provokes(errors.MissingDependencyError, "demo needs", "einops", "pip install")
def _no_dependency(scene: Scene, error: type[KernelHubError]) -> str:
    scene.publish(python_depends=("einops",))
    scene.patch.setitem(sys.modules, "einops", None)
    with pytest.raises(error) as caught:
        get_kernel("org/demo", version=1)
    return str(caught.value)


@provokes(errors.BuildConfigError, "build.toml", "'versoin'")
def _misspelt_key(scene: Scene, error: type[KernelHubError]) -> str:
    source = shutil.copytree(TINY, scene.folder / "source")
    file = source / "build.toml"
    file.write_text(file.read_text().replace("version = 1", "versoin = 1"))
    return scene.khub(error, "build", source, "--out", scene.folder / "out")


@provokes(errors.ToolchainError, "no-such-compiler", "CXX")
def _no_compiler(scene: Scene, error: type[KernelHubError]) -> str:
    scene.patch.setenv("CXX", "no-such-compiler")
    return scene.khub(error, "build", TINY, "--select", "torch-stable*-cpu-x86_64*", "--out", scene.folder)


@provokes(errors.CompileError, "tiny-relu", "torch_binding.cpp:1", "is no statement", "whole log: ")
def _bad_source(scene: Scene, error: type[KernelHubError]) -> str:
    source = shutil.copytree(TINY, scene.folder / "source")
    (source / "torch-ext" / "torch_binding.cpp").write_text("#error this is no statement\n")
    select = ("--select", "torch-stable*-cpu-x86_64*")
    return scene.khub(error, "build", source, *select, "--out", scene.folder / "out")


@provokes(errors.AuditError, "_demo_cpu_", "is not a shared library", "build the package again")
def _no_library(scene: Scene, error: type[KernelHubError]) -> str:
    from packages import unique_id, write_package

    name = unique_id()
    folder = scene.folder / "package"
    files = {"__init__.py": b"", f"{name}.abi3.so": b"text"}
    write_package(folder, files, kernel_id=name, variants=("torch-stable-abi210-cpu-x86_64-linux",))
    return scene.khub(error, "audit", folder)


@provokes(PolicyError, "org/demo", "not signed", "trust_remote_code=['org/demo']")
def _unsigned(scene: Scene, error: type[KernelHubError]) -> str:
    scene.hub.signs = False
    scene.publish()
    with pytest.raises(error) as caught:
        get_kernel("org/demo", version=1)
    assert type(caught.value) is error
    return str(caught.value)


@provokes(SignatureError, "org/demo", "index.json is not the one that was signed", "tell the publisher")
def _signature_of_other_bytes(scene: Scene, error: type[KernelHubError]) -> str:
    package = scene.publish()
    index = package / "index.json"
    index.write_bytes(index.read_bytes() + b"\n")
    with pytest.raises(error) as caught:
        get_kernel("org/demo", version=1)
    return str(caught.value)


@provokes(errors.LockError, "pyproject.toml", "pass the project's folder")
def _no_project(scene: Scene, error: type[KernelHubError]) -> str:
    return scene.khub(error, "lock", scene.folder)


@provokes(errors.RegistryError, "scene/file", "Name another folder or database")
def _no_data_folder(scene: Scene, error: type[KernelHubError]) -> str:
    file = scene.folder / "file"
    file.touch()
    return scene.khub(error, "registry", "token", "list", "--data", file)


@provokes(errors.ModelError, "scene has no config.json")
def _no_model(scene: Scene, error: type[KernelHubError]) -> str:
    return scene.khub(error, "engine", "generate", "--model", scene.folder, "--prompt", "x")


@provokes(SelfTestError, "slot norm: org/x", "is off by", "fall_back")
def _wrong_kernel(scene: Scene, error: type[KernelHubError]) -> str:
    from dataclasses import replace

    import torch

    from engine.kernels import Binding, bind, slot_sources
    from engine.self_test import proven
    from engine.shapes import Shapes

    kernels = bind(slot_sources("torch", None))
    bindings = [
        Binding("norm", "org/x", variant="v") if each.slot == "norm" else each for each in kernels.bindings
    ]
    wrong = replace(kernels, rms_norm=lambda out, *rest: out.fill_(3.0), bindings=tuple(bindings))
    with pytest.raises(error) as caught:
        proven(wrong, Shapes(4, 2, 32, 64, 96, 1e-6, 16, torch.float32, ({},)), seed=1)
    return str(caught.value)


@provokes(errors.MissingExtraError, "'shtab'", "pip install 'kernel-hub[completion]'")
def _no_extra(scene: Scene, error: type[KernelHubError]) -> str:
    scene.patch.setitem(sys.modules, "shtab", None)
    return scene.khub(error, "completion", "bash")


@provokes(LayerError, "layer 'Norm'", "use_fallback")
def _no_layer(scene: Scene, error: type[KernelHubError]) -> str:
    from torch import nn

    from hub_loader import Mode, kernelize, replace_kernel_forward_from_hub

    class Norm(nn.Module):
        def forward(self, x: object) -> object:
            return x

    replace_kernel_forward_from_hub(Norm, "Norm")
    with pytest.raises(error) as caught:
        kernelize(Norm(), device="cpu", mode=Mode.INFERENCE, use_fallback=False)
    return str(caught.value)


@provokes(errors.BenchmarkError, "kernel-hub failed", "2000")
def _too_long(scene: Scene, error: type[KernelHubError]) -> str:
    return scene.khub(error, "engine", "bench", "--model", SHIPPED, "--outputs", "2000")


@provokes(errors.ClusterError, "127.0.0.1:9", "RAY_ADDRESS")
def _no_cluster(scene: Scene, error: type[KernelHubError]) -> str:
    pytest.importorskip("ray")
    scene.patch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    return scene.khub(error, "engine", "serve", SHIPPED, "--ray", "--port", "0")


@provokes(errors.ComputeError, "not finite", "try float32 or another model")
def _no_numbers(scene: Scene, error: type[KernelHubError]) -> str:
    from safetensors.torch import load_file, save_file

    model = scene.folder / "model"
    shutil.copytree(SHIPPED, model)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return scene.khub(error, "engine", "generate", "--model", model, "--prompt", "x", "--max-tokens", "2")


@pytest.mark.parametrize("name", PROVOKED)
def test_error_when_provoked_says_in_one_line_what_is_wrong_and_what_to_do(scene: Scene, name: str) -> None:
    provoke, words = PROVOKED[name]
    said = provoke(scene, getattr(errors, name))
    print(said)
    assert "\n" not in said
    assert "Traceback" not in said
    assert [word for word in words if word not in said] == [], said


def test_every_class_of_the_family_but_its_base_is_provoked() -> None:
    family = {name for name, each in vars(errors).items() if isinstance(each, type)}
    assert {*PROVOKED, "KernelHubError"} == {
        name for name in family if issubclass(getattr(errors, name), KernelHubError)
    }
