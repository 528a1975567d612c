"""The kernel mapping: modes, devices, how mappings merge and nest, and which repository is chosen."""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_loader import (
    CUDAProperties,
    Device,
    KernelizeFallback,
    LayerRepository,
    LockedLayerRepository,
    Mode,
    ROCMProperties,
    UsageError,
    register_kernel_mapping,
    use_kernel_mapping,
)
from hub_loader.layers.mapping import Found, KernelMapping, Missing, choose, current_mapping, merge

A, B, C = (LayerRepository("org/kernel", layer_name=name, version=1) for name in "ABC")
INFERENCE, TRAINING, COMPILE = Mode.INFERENCE, Mode.TRAINING, Mode.TORCH_COMPILE


def chosen(
    mapping: KernelMapping, device: str, mode: Mode = INFERENCE, capability: int | None = 90
) -> object:
    found = choose(mapping, "Norm", device, mode, lambda: capability)
    return found.repository if isinstance(found, Found) else found.case


def test_mode_of_inference_and_training_together_is_refused() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        Mode.INFERENCE | Mode.TRAINING
    with pytest.raises(UsageError, match="exclude each other"):
        (Mode.INFERENCE | Mode.TORCH_COMPILE) | Mode.TRAINING


def test_mode_fallback_with_another_is_refused() -> None:
    with pytest.raises(UsageError, match="stands alone"):
        Mode.TRAINING | Mode.FALLBACK


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: Device("gpu"), "'gpu' is not a device type"),
        (lambda: Device("cpu", CUDAProperties(80, 90)), "CUDAProperties does not describe a 'cpu' device"),
        (lambda: Device("rocm", CUDAProperties(80, 90)), "CUDAProperties does not describe a 'rocm' device"),
        (lambda: Device("cuda", ROCMProperties(90, 94)), "ROCMProperties does not describe a 'cuda' device"),
        (lambda: CUDAProperties(min_capability=90, max_capability=80), "min_capability=90 is above"),
        (
            lambda: CUDAProperties(min_capability=80, max_capability="90"),
            "max_capability='90' is not a number",
        ),
        (lambda: LayerRepository("a/b", layer_name="L", version=1, revision="main"), "pass one of them"),
    ],
)
def test_device_or_repository_that_contradicts_itself_is_refused(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()  # type: ignore[operator]


def test_locked_repository_takes_the_lock_of_the_package_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "lockedpackage-1.0.dist-info"
    metadata.mkdir()
    (tmp_path / "lockedpackage.py").write_text(
        "from hub_loader import LockedLayerRepository\nNORM = LockedLayerRepository('a/b', layer_name='Norm')\n"
    )
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lockedpackage\nVersion: 1.0\n")
    (metadata / "RECORD").write_text(f"lockedpackage.py,,\n{metadata.name}/kernels.lock,,\n")
    (metadata / "kernels.lock").write_text("[]")
    monkeypatch.syspath_prepend(tmp_path)
    lockfile = import_module("lockedpackage").NORM.lockfile
    assert (lockfile.kernels, lockfile.origin) == ((), "kernels.lock of lockedpackage")
    assert LockedLayerRepository("a/b", layer_name="Norm").lockfile is None
    given = LockedLayerRepository("a/b", layer_name="Norm", lockfile=tmp_path / "kernels.lock")
    assert given.lockfile == tmp_path / "kernels.lock"


def test_repositories_with_equal_arguments_are_one_key() -> None:
    trusted = [
        LayerRepository("a/b", layer_name="L", version=1, trust_remote_code=["a/b"], user_agent={"by": by})
        for by in ("me", "you")
    ]
    assert len({*trusted, LayerRepository("a/b", layer_name="L", version=2)}) == 2
    assert str(trusted[0]) == "`a/b` (version 1), layer `L`"


@pytest.mark.parametrize(
    "mode,order",
    [
        (INFERENCE, [INFERENCE, INFERENCE | COMPILE, TRAINING, TRAINING | COMPILE, Mode.FALLBACK]),
        (TRAINING, [TRAINING, TRAINING | COMPILE, Mode.FALLBACK]),
        (INFERENCE | COMPILE, [INFERENCE | COMPILE, TRAINING | COMPILE, Mode.FALLBACK]),
        (TRAINING | COMPILE, [TRAINING | COMPILE, Mode.FALLBACK]),
    ],
    ids=str,
)
def test_choice_for_a_mode_is_the_first_that_can_do_it(mode: Mode, order: list[Mode]) -> None:
    every = [INFERENCE, TRAINING, INFERENCE | COMPILE, TRAINING | COMPILE, Mode.FALLBACK]
    modes = {m: LayerRepository("a/b", layer_name=str(m)) for m in every}
    for serving in order:
        assert chosen(merge({}, {"Norm": {"cpu": modes}}), "cpu", mode) == modes[serving]
        del modes[serving]
    mapping = merge({}, {"Norm": {"cpu": modes}})
    assert chosen(mapping, "cpu", mode) == KernelizeFallback.NO_COMPATIBLE_MODE


@pytest.mark.parametrize("mode", [COMPILE, Mode(0)], ids=str)
def test_mapping_for_a_mode_that_nothing_asks_for_is_refused_and_registers_nothing(mode: Mode) -> None:
    before = current_mapping()
    with pytest.raises(UsageError, match="which nothing asks for: use Mode.FALLBACK"):
        register_kernel_mapping({"Norm": {"cpu": A}, "Other": {"cpu": {mode: B}}})
    assert current_mapping() is before


def test_choice_without_layer_device_or_range_says_which() -> None:
    mapping = merge({}, {"Norm": {Device("cuda", CUDAProperties(80, 89)): A}})
    assert chosen({}, "cuda") == KernelizeFallback.NO_LAYER
    assert chosen(mapping, "cpu") == KernelizeFallback.NO_DEVICE
    assert chosen(mapping, "cuda", capability=90) == KernelizeFallback.NO_COMPATIBLE_PROPERTIES
    assert chosen(mapping, "cuda", capability=None) == KernelizeFallback.NO_COMPATIBLE_PROPERTIES
    missing = choose(mapping, "Norm", "cuda", INFERENCE, lambda: 90)
    assert isinstance(missing, Missing)
    assert missing.reason == "its kernels on cuda are for the capabilities 80 to 89, and this device has 90"


def test_choice_among_ranges_is_the_narrowest_that_holds_the_capability() -> None:
    mapping = merge({}, {"Norm": {"cuda": C, Device("cuda", CUDAProperties(75, 100)): B}})
    mapping = merge(mapping, {"Norm": {Device("cuda", CUDAProperties(80, 90)): A}})
    assert [chosen(mapping, "cuda", capability=c) for c in (70, 75, 80, 90, 91, 101)] == [C, B, A, A, B, C]
    assert chosen(mapping, "cuda", capability=None) == C


def test_choice_without_ranges_asks_for_no_capability() -> None:
    def fail() -> int:
        raise AssertionError("asked")

    assert isinstance(choose(merge({}, {"Norm": {"cuda": A}}), "Norm", "cuda", INFERENCE, fail), Found)


RANGES = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted).map(tuple)


@given(st.lists(RANGES, min_size=1, max_size=12), st.integers(0, 12), st.booleans(), st.randoms())
def test_choice_among_any_ranges_is_that_of_a_search_through_all(
    ranges: list[tuple[int, int]], capability: int, unbounded: bool, random: Random
) -> None:
    devices = {Device("cuda", CUDAProperties(low, high)): f"{low} to {high}" for low, high in ranges}
    if unbounded:
        devices[Device("cuda")] = "any"
    fitting = [(high - low, -low) for low, high in ranges if low <= capability <= high]
    expected = "any" if unbounded else None
    if fitting:
        width, low = min(fitting)
        expected = f"{-low} to {width - low}"
    for _ in range(2):
        named = {device: LayerRepository("a/b", layer_name=name) for device, name in devices.items()}
        answer = chosen(merge({}, {"Norm": named}), "cuda", capability=capability)
        absent = KernelizeFallback.NO_COMPATIBLE_PROPERTIES
        assert answer == (absent if expected is None else LayerRepository("a/b", layer_name=expected))
        devices = dict(random.sample(list(devices.items()), len(devices)))


def test_mapping_registered_again_replaces_that_device_and_range_alone() -> None:
    old = {"Norm": {"cuda": {INFERENCE: A, TRAINING: A}, Device("cuda", CUDAProperties(80, 80)): B, "cpu": B}}
    mapping = merge(merge({}, old), {"Norm": {"cuda": {TRAINING: C}}})
    assert chosen(mapping, "cuda", TRAINING) == C
    assert chosen(mapping, "cuda", INFERENCE) == C
    assert chosen(mapping, "cuda", capability=80) == B
    assert chosen(mapping, "cpu") == B


def test_mapping_in_use_extends_what_is_registered_and_ends_with_the_block() -> None:
    before = current_mapping()
    with use_kernel_mapping({"Norm": {"cpu": A}}):
        with use_kernel_mapping({"Other": {"cpu": B}}):
            assert set(current_mapping()) == {*before, "Norm", "Other"}
            register_kernel_mapping({"Norm": {"cpu": C}})
            assert chosen(current_mapping(), "cpu") == C
            with use_kernel_mapping({"Other": {"cpu": B}}, inherit_mapping=False):
                assert set(current_mapping()) == {"Other"}
        assert chosen(current_mapping(), "cpu") == A
        with pytest.raises(ZeroDivisionError), use_kernel_mapping({"Norm": {"cpu": B}}):
            _ = 1 / 0
        assert chosen(current_mapping(), "cpu") == A
    assert current_mapping() is before


def test_mapping_in_use_that_is_refused_leaves_the_one_before() -> None:
    before = current_mapping()
    with pytest.raises(UsageError), use_kernel_mapping({"Norm": {"gpu": A}}):
        pass
    assert current_mapping() is before


def test_mapping_registered_without_a_block_is_seen_by_every_thread() -> None:
    seen: list[object] = []
    before = current_mapping()
    try:
        with use_kernel_mapping({"Scoped": {"cpu": B}}):
            pass
        register_kernel_mapping({"Norm": {"cpu": A}}, inherit_mapping=False)
        with use_kernel_mapping({"Scoped": {"cpu": B}}):
            thread = threading.Thread(target=lambda: seen.append(dict(current_mapping())))
            thread.start()
            thread.join()
        assert seen == [{"Norm": {("cpu", 0, sys.maxsize): {Mode.FALLBACK: A}}}]
    finally:
        register_kernel_mapping({}, inherit_mapping=False)
    assert before == {}
