"""kernelize: packages with layers, written by the test, run in models of the test's."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import Package, unique_id, write_package
from static_hub import StaticHub
from torch import nn

import hub_loader
from hub_loader import (
    CUDAProperties,
    Device,
    KernelizeFallback,
    LayerError,
    LayerRepository,
    LocalFuncRepository,
    LocalLayerRepository,
    LockedFuncRepository,
    LockedLayerRepository,
    Mode,
    UsageError,
    kernelize,
    kernelized_layers,
    replace_kernel_forward_from_hub,
    use_kernel_forward_from_hub,
    use_kernel_func_from_hub,
    use_kernel_mapping,
    use_kernelized_func,
)

LAYERS = b"""
import torch
from torch import nn

class Double(nn.Module):
    can_torch_compile = True
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

class AddBias(nn.Module):
    has_backward = False
    def forward(self, anything):
        return anything + self.bias

class Triple(nn.Module):
    def forward(self, x):
        return 3 * x

class WithInit(nn.Module):
    def __init__(self):
        super().__init__()
    def forward(self, x):
        return x

class WithHelper(nn.Module):
    scale = 2
    def forward(self, x):
        return self.helper(x)
    def helper(self, x):
        return x

class TwoArguments(nn.Module):
    def forward(self, x, y=1):
        return x

class KeywordOnly(nn.Module):
    def forward(self, *, x):
        return x

class NotALayer:
    def forward(self, x):
        return x
"""
FACE = b"from . import layers\n\n__all__ = ['triple']\n\ndef triple(x):\n    return 3 * x\n"
CPU = {"device": "cpu", "mode": Mode.INFERENCE}


@use_kernel_forward_from_hub("Norm")
class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@use_kernel_forward_from_hub("twist")
def twist(x: torch.Tensor) -> torch.Tensor:
    """A function of the model."""
    return -x


@use_kernelized_func(twist)
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return twist(self.norm(x))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    files = {"__init__.py": FACE, "layers.py": LAYERS}
    return write_package(tmp_path_factory.mktemp("package"), files, kernel_id=unique_id())


@pytest.fixture
def layer(package: Package) -> Callable[[str], LocalLayerRepository]:
    return lambda name: LocalLayerRepository(package.folder, layer_name=name)


@pytest.fixture(autouse=True)
def _functions_run_their_own_forward() -> Iterator[None]:
    yield
    kernelize(Attention(), **CPU)
    assert twist(torch.ones(())).item() == -1


def outputs(model: nn.Module) -> float:
    return float(model(torch.ones(())).detach())


@pytest.mark.parametrize("name,expected", [("Double", 2.0), ("AddBias", 11.0), ("Triple", 3.0)])
def test_kernelize_of_a_mapped_layer_runs_the_kernel_with_its_own_parameters(
    layer: Any, name: str, expected: float
) -> None:
    model = nn.Sequential(Norm())
    with use_kernel_mapping({"Norm": {"cpu": layer(name)}}):
        assert kernelize(model, mode=Mode.INFERENCE) is model
    assert outputs(model) == expected
    assert isinstance(model[0], Norm)
    (choice,) = kernelized_layers(model)
    assert (choice.module, choice.layer, choice.kernel) == ("0", "Norm", str(layer(name)))
    assert choice.reason == "mapped for Mode.FALLBACK"


def test_kernelize_again_without_a_kernel_gives_the_layer_its_own_forward(layer: Any) -> None:
    model = Norm()
    with use_kernel_mapping({"Norm": {"cpu": {Mode.INFERENCE: layer("AddBias")}}}):
        assert outputs(kernelize(model, **CPU)) == 11
        assert outputs(kernelize(model, device="cpu", mode=Mode.TRAINING)) == 1
    (choice,) = kernelized_layers(model)
    assert choice.kernel is None
    assert choice.reason.startswith("no kernel is mapped to it on cpu for Mode.TRAINING")


def test_kernelize_when_mapping_is_disabled_by_environment_restores_forwards(
    layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with use_kernel_mapping({"Norm": {"cpu": layer("Double")}}):
        model = kernelize(Norm(), **CPU)
        monkeypatch.setenv("DISABLE_KERNEL_MAPPING", "1")
        assert outputs(kernelize(model, **CPU, use_fallback=False)) == 1
        monkeypatch.setenv("DISABLE_KERNEL_MAPPING", "0")
        assert outputs(kernelize(model, **CPU)) == 2


@pytest.mark.parametrize(
    "mapping,case,message",
    [
        ({}, KernelizeFallback.NO_LAYER, "add 'Norm' to the mapping"),
        ({"Norm": {"cuda": "Double"}}, KernelizeFallback.NO_DEVICE, "on cpu: the mapping has devices cuda"),
        ({"Norm": {"cpu": {Mode.TRAINING | Mode.TORCH_COMPILE: "Double"}}}, None, ""),
        (
            {"Norm": {"cpu": {Mode.TRAINING: "Triple"}}},
            KernelizeFallback.NO_COMPATIBLE_MODE,
            "for Mode.INFERENCE|TORCH_COMPILE: the mapping has Mode.TRAINING",
        ),
        (
            {"Norm": {"cpu": "Triple"}},
            KernelizeFallback.NO_COMPATIBLE_MODE,
            "Triple` does not support torch.compile",
        ),
    ],
    ids=["layer", "device", "serves", "mode", "flags"],
)
def test_kernelize_where_nothing_serves_keeps_the_layer_only_if_allowed(
    layer: Any, mapping: Any, case: KernelizeFallback | None, message: str
) -> None:
    for devices in mapping.values():
        for device, value in devices.items():
            by_mode = value if isinstance(value, dict) else {Mode.FALLBACK: value}
            devices[device] = {mode: layer(name) for mode, name in by_mode.items() if isinstance(name, str)}
    mode = Mode.INFERENCE | Mode.TORCH_COMPILE
    with use_kernel_mapping(mapping, inherit_mapping=False):
        assert outputs(kernelize(Norm(), device="cpu", mode=mode)) == (1 if case else 2)
        if case is not None:
            assert outputs(kernelize(Norm(), device="cpu", mode=mode, use_fallback=case)) == 1
            with pytest.raises(LayerError, match=f"layer 'Norm': .*{message.replace('|', '.')}"):
                kernelize(Norm(), device="cpu", mode=mode, use_fallback=KernelizeFallback.ALL & ~case)
            with pytest.raises(ValueError, match="layer 'Norm'"):
                kernelize(Norm(), device="cpu", mode=mode, use_fallback=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a capability can be read here")
def test_kernelize_for_a_gpu_that_is_not_there_has_no_compatible_properties(layer: Any) -> None:
    ranged = {Device("cuda", CUDAProperties(80, 90)): layer("Double")}
    with use_kernel_mapping({"Norm": ranged}):
        assert outputs(kernelize(Norm(), device="cuda", mode=Mode.INFERENCE)) == 1
        with pytest.raises(LayerError, match="80 to 90, and no capability could be read here"):
            kernelize(Norm(), device="cuda:1", mode=Mode.INFERENCE, use_fallback=KernelizeFallback.NO_DEVICE)


@pytest.mark.parametrize(
    "name,message",
    [
        ("WithInit", "has an __init__"),
        ("WithHelper", "has members beside forward, which a replaced layer lacks: helper, scale"),
        ("TwoArguments", r"takes \(self, x, y=1\), and Norm.forward takes \(self, x\)"),
        ("KeywordOnly", r"takes \(self, \*, x\), and Norm.forward takes"),
        ("NotALayer", "is not a subclass of torch.nn.Module"),
        ("Missing", "no such layer: it has Double, AddBias, Triple, WithInit, "),
    ],
)
def test_kernelize_with_an_unfit_layer_raises_and_changes_nothing(
    layer: Any, name: str, message: str
) -> None:
    model = nn.ModuleList([replaceable(lambda self, x: x, "Other")(), Norm()])
    mapping = {"Norm": {"cpu": layer(name)}, "Other": {"cpu": layer("Double")}}
    with use_kernel_mapping(mapping), pytest.raises(LayerError, match=message):
        kernelize(model, **CPU, use_fallback=KernelizeFallback.ALL)
    assert ["forward" in module.__dict__ for module in model] == [False, False]


@pytest.mark.parametrize(
    "mode,name,message",
    [
        (Mode.TRAINING, "AddBias", "mapped for Mode.TRAINING and has no backward pass"),
        (Mode.INFERENCE | Mode.TORCH_COMPILE, "Triple", "and does not support torch.compile"),
    ],
)
def test_kernelize_with_a_layer_mapped_for_what_it_cannot_do_raises(
    layer: Any, mode: Mode, name: str, message: str
) -> None:
    with use_kernel_mapping({"Norm": {"cpu": {mode: layer(name)}}}), pytest.raises(LayerError, match=message):
        kernelize(Norm(), device="cpu", mode=Mode.INFERENCE)


def test_kernelize_checks_a_layer_against_every_class_it_replaces(layer: Any) -> None:
    two_arguments = replaceable(lambda self, x, y: x, "Norm")
    with use_kernel_mapping({"Norm": {"cpu": layer("Double")}}):
        kernelize(Norm(), **CPU)
        with pytest.raises(LayerError, match=r"forward takes \(self, x, y\)"):
            kernelize(two_arguments(), **CPU)


class Failing:
    """A repository of somebody else's whose kernel cannot be had."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def load(self) -> type[nn.Module]:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        hub_loader.OfflineError("offline"),
        hub_loader.NoMatchingVariantError("no variant"),
        hub_loader.RepositoryNotFoundError("no repository"),
        FileNotFoundError("no file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_kernelize_when_a_kernel_cannot_be_had_keeps_the_layer_only_if_allowed(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with use_kernel_mapping({"Norm": {"cpu": Failing(error)}}):
        with pytest.raises(type(error)):
            kernelize(Norm(), **CPU)
        with caplog.at_level(logging.WARNING):
            model = kernelize(nn.Sequential(Norm(), Norm()), **CPU, use_fallback=KernelizeFallback.ALL)
    assert outputs(model) == 1
    assert [r.getMessage() for r in caplog.records] == [f"layer 'Norm' (Norm) keeps its own forward: {error}"]


def test_kernelize_when_a_kernel_is_corrupt_raises_whatever_is_allowed(tmp_path: Path) -> None:
    files = {"__init__.py": FACE, "layers.py": LAYERS}
    package = write_package(tmp_path, files, kernel_id=unique_id())
    (package.variants["torch-cpu"] / "layers.py").write_bytes(LAYERS + b"# one more line\n")
    repository = LocalLayerRepository(tmp_path, layer_name="Double")
    with use_kernel_mapping({"Norm": {"cpu": repository}}), pytest.raises(hub_loader.IntegrityError):
        kernelize(Norm(), **CPU, use_fallback=KernelizeFallback.ALL)


@pytest.mark.parametrize("mode", [Mode.FALLBACK, Mode.TORCH_COMPILE, Mode(0)], ids=str)
def test_kernelize_for_no_way_to_run_raises(mode: Mode) -> None:
    with pytest.raises(UsageError, match=r"needs Mode.INFERENCE or Mode\.TRAINING"):
        kernelize(Norm(), device="cpu", mode=mode)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:one", ""])
def test_kernelize_for_an_unknown_device_raises(device: str) -> None:
    with pytest.raises(UsageError, match="is not a device"):
        kernelize(Norm(), device=device, mode=Mode.INFERENCE)


def test_kernelize_without_parameters_asks_for_a_device(layer: Any) -> None:
    model = replaceable(lambda self, x: x, "Norm")()
    with use_kernel_mapping({"Norm": {"cpu": layer("Double")}}):
        with pytest.raises(UsageError, match="no parameters, so no device: pass device="):
            kernelize(model, mode=Mode.INFERENCE)
        assert outputs(kernelize(model, mode=Mode.INFERENCE, device=torch.device("cpu"))) == 2


def test_kernelize_of_a_model_on_a_device_that_no_mapping_can_name_keeps_its_layers(layer: Any) -> None:
    with use_kernel_mapping({"Norm": {"cpu": layer("Double")}}):
        model = kernelize(Norm().to("meta"), mode=Mode.INFERENCE)
    assert kernelized_layers(model)[0].reason.startswith("no kernel is mapped to it on meta")


def replaceable(forward: Callable[..., Any], name: str, condition: Any = None) -> type[nn.Module]:
    cls = type("Made", (nn.Module,), {"forward": forward})
    replace_kernel_forward_from_hub(cls, name, condition)
    return cls


def test_kernelize_leaves_instances_whose_condition_is_false(layer: Any) -> None:
    made = replaceable(lambda self, x: x, "Norm", lambda module: module.training)
    model = nn.Sequential(made(), made().eval())
    with use_kernel_mapping({"Norm": {"cpu": layer("Triple")}}):
        kernelize(model, **CPU)
    assert [outputs(module) for module in model] == [3, 1]


def test_kernelize_leaves_a_subclass_with_another_forward(layer: Any) -> None:
    class Inherits(Norm):
        pass

    class Overrides(Norm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 5

    with use_kernel_mapping({"Norm": {"cpu": layer("Double")}}):
        assert [outputs(kernelize(cls(), **CPU)) for cls in (Inherits, Overrides)] == [2, 6]


def test_kernelize_replaces_the_functions_that_a_module_names(layer: Any, package: Package) -> None:
    for repository in (layer("Triple"), LocalFuncRepository(package.folder, func_name="triple")):
        model = nn.Sequential(Attention(), Attention())
        with use_kernel_mapping({"twist": {"cpu": repository}, "Norm": {"cpu": layer("Double")}}):
            kernelize(model, **CPU)
        assert outputs(model) == 36
        assert [choice.module for choice in kernelized_layers(model)] == ["0.twist", "0.norm", "1.norm"]
        kernelize(model, **CPU)
        assert outputs(model) == 1


def test_marked_function_is_called_and_described_as_before() -> None:
    assert float(twist(torch.ones(()))) == -1
    assert (twist.__name__, twist.__doc__) == ("twist", "A function of the model.")
    assert isinstance(twist, nn.Module)
    assert use_kernel_func_from_hub("other")(lambda x: x + 1)(1) == 2
    assert list(Attention().state_dict()) == ["norm.bias"]


def test_marked_function_in_a_copied_or_pickled_model_is_the_one_that_its_forward_calls(layer: Any) -> None:
    for copied in (copy.deepcopy(Attention()), pickle.loads(pickle.dumps(Attention()))):
        with use_kernel_mapping({"twist": {"cpu": layer("Triple")}}):
            assert outputs(kernelize(copied, **CPU)) == 3


def test_copy_of_a_kernelized_model_runs_the_kernel_with_parameters_of_its_own(layer: Any) -> None:
    with use_kernel_mapping({"Norm": {"cpu": layer("AddBias")}}):
        model = kernelize(Norm(), **CPU)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.bias.add_(1)
    assert [outputs(model), outputs(copied)] == [11, 12]
    assert kernelized_layers(copied)[0].kernel == str(layer("AddBias"))


def test_pickled_copy_of_a_kernelized_model_runs_its_own_forward_and_says_so(layer: Any) -> None:
    with use_kernel_mapping({"Norm": {"cpu": layer("AddBias")}}):
        copied = pickle.loads(pickle.dumps(kernelize(Norm(), **CPU)))
        assert outputs(copied) == 1
        assert kernelized_layers(copied)[0].kernel is None
        assert outputs(kernelize(copied, **CPU)) == 11


def test_marks_on_what_cannot_be_marked_raise() -> None:
    with pytest.raises(UsageError, match="marks a class or a function, not 3"):
        use_kernel_forward_from_hub("Norm")(3)
    with pytest.raises(UsageError, match="outputs is not marked: decorate it"):
        use_kernelized_func([outputs])


@pytest.mark.slow
def test_kernelized_model_compiles_without_a_graph_break(layer: Any) -> None:
    model = Attention()
    with use_kernel_mapping({"Norm": {"cpu": layer("Double")}, "twist": {"cpu": layer("Double")}}):
        kernelize(model, device="cpu", mode=Mode.INFERENCE | Mode.TORCH_COMPILE)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert outputs(compiled) == 4


def test_kernelize_from_a_hub_runs_the_layer_of_the_version_asked_for(hub: StaticHub, tmp_path: Path) -> None:
    for version, factor in ((1, b"2"), (2, b"7")):
        files = {"__init__.py": FACE, "layers.py": LAYERS.replace(b"2 * x", factor + b" * x")}
        folder = tmp_path / f"v{version}"
        write_package(folder, files, kernel_id=unique_id(), version=version)
        hub.publish("org/layered", f"v{version}", folder)
    newest, pinned = (LayerRepository("org/layered", layer_name="Double", version=v) for v in (None, 1))
    assert hub.requests == []
    with use_kernel_mapping({"Norm": {"cpu": {Mode.INFERENCE: newest, Mode.TRAINING: pinned}}}):
        assert [outputs(kernelize(Norm(), mode=mode)) for mode in (Mode.INFERENCE, Mode.TRAINING)] == [7, 2]
        sent = len(hub.requests)
        kernelize(nn.Sequential(Norm(), Norm()), mode=Mode.INFERENCE)
        assert len(hub.requests) == sent


def test_kernelize_when_the_hub_has_no_such_kernel_keeps_the_layer_only_if_allowed(hub: StaticHub) -> None:
    with use_kernel_mapping({"Norm": {"cpu": LayerRepository("org/none", layer_name="Double")}}):
        with pytest.raises(hub_loader.RepositoryNotFoundError):
            kernelize(Norm(), **CPU)
        assert outputs(kernelize(Norm(), **CPU, use_fallback=KernelizeFallback.ALL)) == 1


def test_kernelize_with_locked_repositories_runs_what_the_lock_names(hub: StaticHub, tmp_path: Path) -> None:
    write_package(tmp_path, {"__init__.py": FACE, "layers.py": LAYERS}, kernel_id=unique_id())
    commit = hub.publish("org/layered", "v1", tmp_path)
    dependency = {"repo-id": "org/layered", "version": 1}
    lockfile = tmp_path / "kernels.lock"
    lockfile.write_text(json.dumps([{"dependency": dependency, "lock": {"commit": commit}}]))
    layer = LockedLayerRepository("org/layered", layer_name="Double", lockfile=lockfile)
    function = LockedFuncRepository("org/layered", func_name="triple", lockfile=lockfile)
    for repository, expected in ((layer, 2), (function, 3)):
        with use_kernel_mapping({"Norm": {"cpu": repository}}):
            assert outputs(kernelize(Norm(), **CPU)) == expected
