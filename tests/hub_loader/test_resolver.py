"""The resolver as a table: for each rule a variant that passes and one that does not, with the reason."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_loader import Environment, Torch, UsageError
from hub_loader.manifest import BackendInfo
from hub_loader.resolver import covers, resolve
from hub_loader.variant import parse_variant

H200 = (9, 0)
CUDA = Environment(
    python="cp311",
    arch="x86_64",
    os="linux",
    glibc=(2, 36),
    torch=Torch((2, 11), "2.11.0+cu130", (13, 0), True),
    tvm_ffi=(0, 1),
    compute_capabilities=(H200,),
)
CPU = replace(CUDA, torch=Torch((2, 13), "2.13.0+cpu", None, True), compute_capabilities=())
ANY = BackendInfo("any")


def chosen(environment: Environment, *names: str, backend: str | None = None) -> str | None:
    best = resolve(environment, dict.fromkeys(names, ANY), backend)[0]
    return best.variant if best.accepted else None


def reason(environment: Environment, name: str, *archs: str, backend: str | None = None) -> str | None:
    (decision,) = resolve(environment, {name: BackendInfo("cuda", archs)}, backend)
    return None if decision.accepted else decision.reason


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        (CUDA, "torch211-cxx11-cu130-x86_64-linux"),
        (CUDA, "torch211-cu130-x86_64-linux"),
        (CUDA, "torch-stable-abi211-cu130-x86_64-linux"),
        (CUDA, "torch-stable-abi29-cu130-x86_64-linux"),
        (CUDA, "tvm-ffi01-cu130-x86_64-linux"),
        (CUDA, "cp311-torch211-cxx11-cu130-x86_64-linux"),
        (CUDA, "torch-cuda"),
        (CUDA, "torch-universal"),
        (CPU, "torch213-cxx11-cpu-x86_64-linux"),
        (CPU, "cp311-cpu-x86_64-linux"),
        (CPU, "torch-cpu"),
        (replace(CUDA, torch=replace(CUDA.torch, cuda=(13, 2))), "torch211-cxx11-cu130-x86_64-linux"),
        (replace(CUDA, torch=replace(CUDA.torch, cxx11_abi=False)), "torch211-cxx98-cu130-x86_64-linux"),
    ],
)
def test_resolve_when_everything_fits_then_accepts(environment: Environment, name: str) -> None:
    assert reason(environment, name) is None


@pytest.mark.parametrize(
    ("environment", "name", "sentence"),
    [
        (CUDA, "torch-cpu", "is for cpu, and cuda is wanted: torch is built for CUDA"),
        (CPU, "torch-cuda", "is for cuda, and cpu is wanted: torch is not built for CUDA"),
        (CUDA, "torch211-cxx11-cu130-aarch64-linux", "is for aarch64-linux, this machine is x86_64-linux"),
        (CUDA, "torch210-cxx11-cu130-x86_64-linux", "needs torch 2.10, 2.11.0+cu130 is installed"),
        (CUDA, "torch212-cxx11-cu130-x86_64-linux", "needs torch 2.12, 2.11.0+cu130 is installed"),
        (
            CUDA,
            "torch211-cxx98-cu130-x86_64-linux",
            "needs the pre-C++11 ABI, this torch has the C++11 ABI",
        ),
        (
            CUDA,
            "torch-stable-abi212-cu130-x86_64-linux",
            "needs torch 2.12 or newer, 2.11.0+cu130 is installed",
        ),
        (CUDA, "torch211-cxx11-cu132-x86_64-linux", "needs CUDA 13.2, torch has CUDA 13.0"),
        (CUDA, "torch211-cxx11-cu128-x86_64-linux", "needs CUDA 12.8, torch has CUDA 13.0"),
        (CUDA, "torch211-cxx11-cu1310-x86_64-linux", "needs CUDA 13.10, torch has CUDA 13.0"),
        (CUDA, "tvm-ffi02-cu130-x86_64-linux", "needs tvm-ffi 0.2, 0.1 is installed"),
        (
            replace(CUDA, tvm_ffi=(0, 2)),
            "tvm-ffi01-cu130-x86_64-linux",
            "needs tvm-ffi 0.1, 0.2 is installed",
        ),
        (
            replace(CUDA, tvm_ffi=None),
            "tvm-ffi01-cu130-x86_64-linux",
            "needs tvm-ffi, which is not installed",
        ),
        (replace(CPU, torch=None), "torch-cpu", "needs torch, which is not installed"),
        (CPU, "cp312-cpu-x86_64-linux", "needs the interpreter cp312, this is cp311"),
        (CPU, "cp311t-cpu-x86_64-linux", "needs the interpreter cp311t, this is cp311"),
        (
            replace(CPU, python="cp313t"),
            "torch213-cxx11-cpu-x86_64-linux",
            "needs CPython's stable ABI, which the free-threaded cp313t does not load",
        ),
        (
            replace(CPU, glibc=(2, 17)),
            "cp311-cpu-x86_64-linux",
            "needs glibc 2.28 or newer, this is 2.17",
        ),
        (
            replace(CPU, glibc=None),
            "cp311-cpu-x86_64-linux",
            "needs glibc 2.28 or newer, this system's C library is another one",
        ),
    ],
)
def test_resolve_when_something_differs_then_the_reason_names_both_sides(
    environment: Environment, name: str, sentence: str
) -> None:
    assert reason(environment, name) == sentence


def test_resolve_when_cpu_is_asked_for_on_a_cuda_torch_then_takes_the_cpu_variant() -> None:
    names = ("torch-cuda", "torch-cpu")
    assert chosen(CUDA, *names) == "torch-cuda"
    assert chosen(CUDA, *names, backend="cpu") == "torch-cpu"
    assert reason(CUDA, "torch-cuda", backend="cpu") == "is for cuda, and cpu is asked for"


def test_resolve_when_the_backend_is_unknown_then_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown backend 'vulkan': use one of cpu, cuda, rocm"):
        resolve(CPU, {}, "vulkan")


def test_resolve_when_several_fit_then_orders_by_how_exactly_they_fit() -> None:
    best_first = [
        "cp311-torch211-cxx11-cu130-x86_64-linux",
        "torch211-cu130-x86_64-linux",
        "torch211-cxx11-cu130-x86_64-linux",
        "cp311-cu130-x86_64-linux",
        "abi3-cu130-x86_64-linux",
        "torch-stable-abi211-cu130-x86_64-linux",
        "torch-stable-abi210-cu130-x86_64-linux",
        "torch-stable-abi29-cu130-x86_64-linux",
        "tvm-ffi01-cu130-x86_64-linux",
        "torch-cuda",
        "torch-universal",
    ]
    decisions = resolve(CUDA, dict.fromkeys(reversed(best_first), ANY))
    assert [decision.variant for decision in decisions] == best_first
    assert decisions[0].reason == "built for exactly this torch; the best fit"
    assert decisions[-1].reason.endswith(f"fits, but {best_first[0]} is preferred")


def test_resolve_when_an_exact_build_has_an_older_cuda_then_it_still_beats_the_stable_abi() -> None:
    newer = replace(CUDA, torch=replace(CUDA.torch, cuda=(13, 2)))
    exact, stable = "torch211-cxx11-cu130-x86_64-linux", "torch-stable-abi211-cu132-x86_64-linux"
    assert chosen(newer, stable, exact) == exact
    assert chosen(newer, exact, "torch211-cxx11-cu132-x86_64-linux") == "torch211-cxx11-cu132-x86_64-linux"


@pytest.mark.parametrize(
    ("arch", "covered", "not_covered"),
    [
        ("9.0", [(9, 0), (9, 1)], [(8, 9), (10, 0)]),
        ("8.6", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("9.0a", [(9, 0)], [(9, 1), (10, 0)]),
        ("9.0a+PTX", [(9, 0)], [(9, 1), (10, 0)]),
        ("9.0+PTX", [(9, 0), (10, 0), (12, 0)], [(8, 9)]),
        ("10.0f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
    ],
)
def test_covers_then_follows_cuda_binary_compatibility(
    arch: str, covered: list[tuple[int, int]], not_covered: list[tuple[int, int]]
) -> None:
    assert all(covers(arch, capability) for capability in covered)
    assert not any(covers(arch, capability) for capability in not_covered)


def test_resolve_when_a_visible_gpu_is_not_covered_then_rejects() -> None:
    name = "torch211-cxx11-cu130-x86_64-linux"
    two = replace(CUDA, compute_capabilities=((8, 0), (12, 0)))
    assert reason(two, name, "8.0", "12.0") is None
    assert reason(two, name, "8.0", "9.0") == (
        "is compiled for compute capability 8.0, 9.0, a visible GPU has 12.0"
    )
    assert reason(replace(two, compute_capabilities=()), name, "9.0") is None
    assert reason(two, name, "sm_90") == "lists the malformed compute capability 'sm_90'"


ROCM = replace(CUDA, torch=Torch((2, 11), "2.11.0+rocm6.3", None, True, rocm=(6, 3)), compute_capabilities=())
XPU = replace(ROCM, torch=Torch((2, 11), "2.11.0+xpu", None, True, xpu=(2025, 2)))
MAC = Environment(
    "cp312", "aarch64", "darwin", torch=Torch((2, 11), "2.11.0", None, None), tvm_ffi=(0, 1), macos=(26, 1)
)


@pytest.mark.parametrize(
    ("environment", "name", "sentence"),
    [
        (ROCM, "torch211-cxx11-rocm63-x86_64-linux", None),
        (ROCM, "torch211-cxx11-rocm62-x86_64-linux", "needs ROCm 6.2, torch has ROCm 6.3"),
        (ROCM, "torch-rocm", None),
        (ROCM, "torch-cuda", "is for cuda, and rocm is wanted: torch is built for ROCm"),
        (XPU, "torch211-cxx11-xpu20252-x86_64-linux", None),
        (XPU, "torch211-cxx11-xpu20251-x86_64-linux", "needs XPU 2025.1, torch has XPU 2025.2"),
        (MAC, "torch211-metal-aarch64-darwin", None),
        (
            replace(MAC, macos=(15, 6)),
            "torch211-metal-aarch64-darwin",
            "needs macOS 26.0 or newer, this is 15.6",
        ),
        (CPU, "torch-metal", "is for metal, and cpu is wanted: torch is not built for Metal"),
        (
            replace(CPU, python="pp310"),
            "torch213-cpu-x86_64-linux",
            "needs CPython's stable ABI, which pp310 does not have",
        ),
        (
            replace(CPU, glibc=None, musl=(1, 2)),
            "torch213-cpu-x86_64-linux",
            "needs glibc 2.28 or newer, this system's C library is musl 1.2",
        ),
    ],
)
def test_resolve_on_other_backends_and_systems_accepts_or_says_why_not(
    environment: Environment, name: str, sentence: str | None
) -> None:
    assert reason(environment, name) == sentence


@pytest.mark.parametrize("name", ["torch-cuda", "torch-universal", "torch213-cxx11-cu130-x86_64-linux"])
def test_resolve_when_cuda_is_asked_for_and_torch_has_none_then_nothing_stands_in(name: str) -> None:
    assert reason(CPU, name, backend="cuda") == "needs a torch built for CUDA, 2.13.0+cpu is not"
    assert (
        reason(ROCM, "torch-universal", backend="cuda")
        == "needs a torch built for CUDA, 2.11.0+rocm6.3 is not"
    )


def test_resolve_when_cann_is_asked_for_then_takes_the_noarch_variant_that_is_called_npu() -> None:
    assert chosen(CPU, "torch-npu", "torch-cpu", backend="cann") == "torch-npu"
    assert reason(CPU, "torch-cpu", backend="cann") == "is for cpu, and cann is asked for"


def test_resolve_when_the_driver_is_older_than_the_cuda_then_rejects() -> None:
    name = "torch211-cxx11-cu130-x86_64-linux"
    older = replace(CUDA, driver="570.86", driver_cuda=(12, 8))
    assert reason(older, name, "9.0") == "needs a driver for CUDA 13, the driver 570.86 runs CUDA up to 12.8"
    assert reason(replace(older, driver_cuda=(13, 0)), name, "9.0") is None


def test_resolve_when_a_gpu_is_covered_by_ptx_alone_then_the_driver_must_be_able_to_compile_it() -> None:
    name = "torch211-cxx11-cu130-x86_64-linux"
    newer = replace(
        CUDA, torch=replace(CUDA.torch, cuda=(13, 2)), compute_capabilities=((12, 0),), driver_cuda=(13, 0)
    )
    assert reason(newer, name, "9.0+PTX") is None
    assert reason(newer, "torch211-cxx11-cu132-x86_64-linux", "9.0+PTX") == (
        "is compiled for compute capability 9.0+PTX, a visible GPU has 12.0, "
        "and the driver runs CUDA up to 13.0: too old for this PTX"
    )
    assert reason(newer, "torch211-cxx11-cu132-x86_64-linux", "12.0") is None


_names = st.one_of(
    st.sampled_from([f"torch-{backend}" for backend in ("cuda", "cpu", "rocm", "npu", "universal")]),
    st.builds(
        "{}{}-{}-{}-linux".format,
        st.sampled_from(["", "cp311-", "cp312-", "abi3-"]),
        st.sampled_from(["torch211-cxx11", "torch211", "torch212-cxx11", "torch-stable-abi210", "tvm-ffi01"]),
        st.sampled_from(["cpu", "cu126", "cu130", "cu132", "rocm63"]),
        st.sampled_from(["x86_64", "aarch64"]),
    ),
)
_archs = st.lists(st.sampled_from(["8.0", "9.0", "9.0a", "9.0+PTX", "sm_90"]), max_size=2).map(tuple)
_variants = st.dictionaries(_names, st.builds(BackendInfo, st.just("any"), _archs), max_size=12)
_environments = st.builds(
    Environment,
    python=st.sampled_from(["cp311", "cp312", "cp313t"]),
    arch=st.sampled_from(["x86_64", "aarch64"]),
    os=st.just("linux"),
    glibc=st.sampled_from([None, (2, 17), (2, 36)]),
    torch=st.sampled_from([None, CUDA.torch, CPU.torch, ROCM.torch]),
    tvm_ffi=st.sampled_from([None, (0, 1)]),
    compute_capabilities=st.sampled_from([(), (H200,), ((8, 0), H200)]),
    driver_cuda=st.sampled_from([None, (12, 8), (13, 0)]),
)
_backends = st.sampled_from([None, "cpu", "cuda"])


@given(_environments, _variants, _backends, st.randoms())
def test_resolve_when_the_variants_are_shuffled_then_the_answer_is_the_same(
    environment: Environment, variants: dict[str, BackendInfo], backend: str | None, rng: random.Random
) -> None:
    shuffled = list(variants.items())
    rng.shuffle(shuffled)
    decisions = resolve(environment, variants, backend)
    assert resolve(environment, dict(shuffled), backend) == decisions
    assert sorted(decision.variant for decision in decisions) == sorted(variants)


@given(_environments, _variants, _backends)
def test_resolve_then_never_accepts_what_could_not_run(
    environment: Environment, variants: dict[str, BackendInfo], backend: str | None
) -> None:
    for decision in resolve(environment, variants, backend):
        variant = parse_variant(decision.variant)
        assert decision.reason
        if not decision.accepted:
            continue
        assert variant.platform is None or variant.platform.arch == environment.arch
        assert variant.backend.name in ((backend or environment.backend), "universal")
        assert variant.framework.name != "torch" or variant.framework.version == environment.torch.version
        assert variant.python in (None, "abi3", environment.python)
        if variant.backend.name == "cuda" and variant.backend.version is not None:
            assert environment.torch.cuda[0] == variant.backend.version[0]
            assert environment.torch.cuda >= variant.backend.version


@given(_environments, _variants)
def test_resolve_then_accepted_variants_come_before_rejected_ones(
    environment: Environment, variants: dict[str, BackendInfo]
) -> None:
    accepted = [decision.accepted for decision in resolve(environment, variants)]
    assert accepted == sorted(accepted, reverse=True)


@given(_environments, _variants, _backends)
def test_resolve_when_any_two_accepted_variants_are_compared_alone_then_the_earlier_one_wins(
    environment: Environment, variants: dict[str, BackendInfo], backend: str | None
) -> None:
    """Of any two one wins, whatever else is there: the order is total, transitive and of the variants alone."""
    ranked = [d.variant for d in resolve(environment, variants, backend) if d.accepted]
    for better, worse in itertools.combinations(ranked, 2):
        pair = {name: variants[name] for name in (worse, better)}
        assert [d.variant for d in resolve(environment, pair, backend) if d.accepted] == [better, worse]


@given(
    st.tuples(st.integers(1, 20), st.integers(0, 9)),
    st.tuples(st.integers(1, 20), st.integers(0, 9)),
    st.sampled_from(["", "a", "f"]),
    st.booleans(),
)
def test_covers_then_ptx_only_ever_adds_later_gpus(
    compiled: tuple[int, int], capability: tuple[int, int], suffix: str, ptx: bool
) -> None:
    arch = f"{compiled[0]}.{compiled[1]}{suffix}"
    binary = covers(arch, capability)
    assert not binary or (capability[0] == compiled[0] and capability >= compiled)
    assert covers(f"{arch}+PTX", capability, ptx=False) == binary
    assert covers(f"{arch}+PTX", capability) == (binary or (not suffix and capability >= compiled))


# What mutants of the rules survived without: each bound at its edge, and each place of the order by itself.


@pytest.mark.parametrize(("glibc", "fits"), [((2, 27), False), ((2, 28), True), ((2, 29), True)])
def test_glibc_fits_from_the_oldest_on(glibc: tuple[int, int], fits: bool) -> None:
    said = reason(replace(CPU, glibc=glibc), "torch213-cxx11-cpu-x86_64-linux")
    assert said == (None if fits else "needs glibc 2.28 or newer, this is 2.27")


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("torch-stable-abi210-cu130-x86_64-linux", "torch-stable-abi29-cu130-x86_64-linux"),
        ("torch211-cu130-x86_64-linux", "torch211-cxx11-cu130-x86_64-linux"),
        ("torch-cuda", "torch-universal"),
        ("tvm-ffi01-cu130-x86_64-linux", "tvm-ffi00-cu130-x86_64-linux"),
        ("cp311-torch211-cxx11-cu130-x86_64-linux", "torch211-cxx11-cu130-x86_64-linux"),
    ],
)
def test_of_two_that_fit_the_more_exact_is_taken_in_either_order(better: str, worse: str) -> None:
    assert chosen(CUDA, better, worse) == chosen(CUDA, worse, better) == better


def test_newer_cuda_of_a_major_is_taken_and_never_a_newer_major() -> None:
    newer = replace(CUDA, torch=replace(CUDA.torch, cuda=(13, 2)))
    names = [f"torch-stable-abi210-cu{cuda}-x86_64-linux" for cuda in ("130", "131", "128")]
    assert chosen(newer, *names) == names[1]


def test_driver_without_a_version_is_called_the_driver() -> None:
    old = replace(CUDA, driver=None, driver_cuda=(12, 8))
    assert reason(old, "torch211-cxx11-cu130-x86_64-linux") == (
        "needs a driver for CUDA 13, the driver runs CUDA up to 12.8"
    )
    named = replace(old, driver="570.1")
    assert reason(named, "torch211-cxx11-cu130-x86_64-linux") == (
        "needs a driver for CUDA 13, the driver 570.1 runs CUDA up to 12.8"
    )


def test_torch_of_an_unknown_abi_is_said_to_have_one() -> None:
    unknown = replace(CUDA, torch=replace(CUDA.torch, cxx11_abi=None))
    assert reason(unknown, "torch211-cxx11-cu130-x86_64-linux") == (
        "needs the C++11 ABI, this torch has an unknown C++ ABI"
    )
