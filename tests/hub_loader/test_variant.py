"""The variant grammar: every name round-trips, and what is not canonical is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_loader.variant import Backend, Framework, Platform, Variant, parse_backend, parse_variant

X86 = Platform("x86_64", "linux")


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        (
            "torch213-cxx11-cu130-x86_64-linux",
            Variant(Framework("torch", (2, 13), True), Backend("cuda", (13, 0)), X86),
        ),
        ("torch25-cxx98-cpu-x86_64-linux", Variant(Framework("torch", (2, 5), False), Backend("cpu"), X86)),
        (
            "torch29-metal-aarch64-darwin",
            Variant(Framework("torch", (2, 9)), Backend("metal"), Platform("aarch64", "darwin")),
        ),
        (
            "torch-stable-abi210-cu126-x86_64-linux",
            Variant(Framework("torch-stable-abi", (2, 10)), Backend("cuda", (12, 6)), X86),
        ),
        (
            "tvm-ffi01-rocm63-x86_64-linux",
            Variant(Framework("tvm-ffi", (0, 1)), Backend("rocm", (6, 3)), X86),
        ),
        (
            "cp311-torch213-cxx11-cpu-x86_64-linux",
            Variant(Framework("torch", (2, 13), True), Backend("cpu"), X86, "cp311"),
        ),
        ("cp313t-cpu-x86_64-linux", Variant(Framework("none"), Backend("cpu"), X86, "cp313t")),
        ("torch-universal", Variant(Framework("torch-noarch"), Backend("universal"))),
        ("torch-cuda", Variant(Framework("torch-noarch"), Backend("cuda"))),
    ],
)
def test_parse_variant_when_canonical_then_round_trips(name: str, variant: Variant) -> None:
    assert parse_variant(name) == variant
    assert str(variant) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-",
        "cp311",
        "cp311-",
        "cp311-torch-cpu",
        "torch",
        "torch-",
        "torch-stable",
        "torch-vulkan",
        "torch2-cpu-x86_64-linux",
        "torch213",
        "torch213-cxx11-cu-x86_64-linux",
        "torch213-cxx11-cu13-x86_64-linux-extra",
        "torch213-cxx11-cu0130-x86_64-linux",
        "torch213-cxx11-cpu-x86_64",
        "torch213-cxx11-CPU-x86_64-linux",
        "Torch213-cxx11-cpu-x86_64-linux",
        "torch2013-cxx11-cpu-../linux-x",
        "tvm",
        "tvm-ffi01",
        "jax05-cpu-x86_64-linux",
        "torch٢13-cpu-x86_64-linux",
    ],
)
def test_parse_variant_when_outside_the_grammar_then_value_error(name: str) -> None:
    with pytest.raises(ValueError):
        parse_variant(name)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("cu92", (9, 2)),
        ("cu130", (13, 0)),
        ("cu1310", (13, 10)),
        ("rocm610", (6, 10)),
        ("xpu20252", (2025, 2)),
    ],
)
def test_parse_backend_then_splits_major_from_minor(name: str, version: tuple[int, int]) -> None:
    assert parse_backend(name).version == version


_minor = st.integers(0, 40)
_frameworks = st.one_of(
    st.builds(
        Framework,
        st.just("torch"),
        st.tuples(st.integers(1, 9), _minor),
        st.sampled_from([None, True, False]),
    ),
    st.builds(
        Framework, st.sampled_from(["torch-stable-abi", "tvm-ffi"]), st.tuples(st.integers(0, 9), _minor)
    ),
)
_backends = st.one_of(
    st.builds(Backend, st.sampled_from(["cpu", "metal", "neuron", "tpu"])),
    st.builds(Backend, st.just("cuda"), st.tuples(st.integers(10, 99), _minor)),
    st.builds(Backend, st.sampled_from(["rocm", "cann"]), st.tuples(st.integers(1, 9), _minor)),
    st.builds(Backend, st.just("xpu"), st.tuples(st.integers(2024, 2099), _minor)),
)
_platforms = st.builds(Platform, st.sampled_from(["x86_64", "aarch64"]), st.sampled_from(["linux", "darwin"]))


@given(_frameworks, _backends, _platforms, st.sampled_from([None, "cp310", "cp313t", "abi3"]))
def test_variant_when_written_and_parsed_then_is_the_same(
    framework: Framework, backend: Backend, platform: Platform, python: str | None
) -> None:
    variant = Variant(framework, backend, platform, python)
    assert parse_variant(str(variant)) == variant


@given(st.text(st.sampled_from("torchcpu-1239abiviffxu_86lnx."), max_size=40))
def test_parse_variant_when_given_any_text_then_refuses_or_round_trips(name: str) -> None:
    try:
        variant = parse_variant(name)
    except ValueError:
        return
    assert str(variant) == name
