"""Environments that are not this one: described by hand, or read from what another machine printed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_loader import Environment, Torch, UsageError
from hub_loader.described import Description, describe_environment
from hub_loader.environment_text import environment_json, parse_environment, summary

BASE = Environment(
    "cp311",
    "x86_64",
    "linux",
    (2, 36),
    Torch((2, 13), "2.13.0+cpu", None, True),
    driver="570",
    driver_cuda=(12, 8),
)


def described(**stated: object) -> Environment:
    return describe_environment(BASE, Description(**stated))  # type: ignore[arg-type]


def test_describe_when_nothing_is_stated_then_is_the_base_itself() -> None:
    assert describe_environment(BASE, Description()) is BASE


def test_describe_when_a_gpu_user_is_stated_then_the_rest_is_the_bases() -> None:
    assert described(torch="2.9", cuda="12.8", python="3.12", sm=("90", "8.6", "120")) == Environment(
        "cp312",
        "x86_64",
        "linux",
        (2, 36),
        Torch((2, 9), "2.9+cu128", (12, 8), True),
        compute_capabilities=((9, 0), (8, 6), (12, 0)),
    )


@pytest.mark.parametrize(
    ("stated", "torch"),
    [
        ({"torch": "2.9.1+cu128"}, Torch((2, 9), "2.9.1+cu128", (12, 8), True)),
        ({"torch": "2.9.1+rocm6.4"}, Torch((2, 9), "2.9.1+rocm6.4", None, True, rocm=(6, 4))),
        ({"torch": "2.9.1"}, Torch((2, 9), "2.9.1", None, True)),
        ({"torch": "2.9.1", "cpu": True}, Torch((2, 9), "2.9.1+cpu", None, True)),
        ({"torch": "2.9", "xpu": "2025.2"}, Torch((2, 9), "2.9+xpu", None, True, xpu=(2025, 2))),
        ({"cuda": "13.0"}, Torch((2, 13), "2.13.0+cu130", (13, 0), True)),
        ({"torch": "2.6", "cuda": "12.4"}, Torch((2, 6), "2.6+cu124", (12, 4), False)),
        ({"torch": "2.6", "cuda": "12.4", "cxx11_abi": True}, Torch((2, 6), "2.6+cu124", (12, 4), True)),
        ({"torch": "2.6", "arch": "aarch64"}, Torch((2, 6), "2.6", None, True)),
        ({"os": "darwin", "arch": "aarch64"}, Torch((2, 13), "2.13.0+cpu", None, None)),
        ({"torch": "none"}, None),
    ],
)
def test_describe_then_torch_is_what_its_own_wheel_of_that_release_is(
    stated: dict[str, object], torch: Torch | None
) -> None:
    assert described(**stated).torch == torch


def test_describe_when_another_system_is_stated_then_its_versions_are_not_the_bases() -> None:
    mac = described(os="darwin", arch="aarch64", macos="26.1")
    assert (mac.glibc, mac.macos, mac.backend) == (None, (26, 1), "metal")
    assert described(musl="1.2").glibc is None
    assert described(glibc="2.17").glibc == (2, 17)
    assert described(python="3.12").driver_cuda is None
    assert described(driver_cuda="13.0").driver_cuda == (13, 0)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"torch": "newest"}, "--torch 'newest' is no version"),
        ({"cuda": "12"}, "--cuda '12' is no version"),
        ({"python": "three"}, "--python 'three' is no version"),
        ({"sm": ("9",)}, "--sm '9' is no compute capability"),
        ({"cuda": "12.8", "rocm": "6.4"}, "--cuda and --rocm contradict"),
        ({"torch": "none", "cuda": "12.8"}, "contradict"),
        ({"torch": "2.9+cu128", "cpu": True}, r"--torch 2.9\+cu128 and --cpu contradict"),
        ({"torch": "2.9+cu128", "cuda": "12.6"}, "contradict"),
        ({"cpu": True, "sm": ("90",)}, "--sm and --cpu contradict"),
        ({"glibc": "2.36", "musl": "1.2"}, "contradict"),
    ],
)
def test_describe_when_a_value_is_wrong_then_names_the_option_and_how_to_write_it(
    stated: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        described(**stated)


def test_describe_when_there_is_no_torch_to_build_then_asks_for_its_release() -> None:
    with pytest.raises(UsageError, match="state its release with --torch"):
        describe_environment(replace(BASE, torch=None), Description(cuda="12.8"))


_number = st.integers(0, 99)
_pair = st.tuples(_number, _number)
_maybe = st.one_of(st.none(), _pair)
_environments = st.builds(
    Environment,
    python=st.from_regex(r"cp3\d{1,2}t?", fullmatch=True),
    arch=st.sampled_from(["x86_64", "aarch64"]),
    os=st.sampled_from(["linux", "darwin"]),
    glibc=_maybe,
    torch=st.one_of(
        st.none(),
        st.builds(
            Torch, _pair, st.text(max_size=8), _maybe, st.sampled_from([None, True, False]), _maybe, _maybe
        ),
    ),
    tvm_ffi=_maybe,
    compute_capabilities=st.lists(_pair, max_size=3).map(tuple),
    musl=_maybe,
    macos=_maybe,
    driver=st.one_of(st.none(), st.text(max_size=8)),
    driver_cuda=_maybe,
)


@given(_environments)
def test_an_environment_when_printed_and_read_elsewhere_then_is_the_same(environment: Environment) -> None:
    printed = json.dumps({**environment_json(environment), "backend": environment.backend, "offline": False})
    assert parse_environment(printed, origin="there.json") == environment
    assert environment.python in summary(environment)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"python": 3, "arch": "x86_64", "os": "linux"}', "[" * 100_000]
    + [
        json.dumps({**environment_json(BASE), key: value})
        for key, value in (
            ("glibc", "2.36"),
            ("glibc", [2]),
            ("glibc", [2, -1]),
            ("glibc", [2, True]),
            ("torch", "2.9"),
            ("torch", {"version": [2, 9]}),
            ("torch", {**environment_json(BASE)["torch"], "cxx11_abi": 1}),
            ("compute_capabilities", [9.0]),
            ("driver", 570),
        )
    ],
)
def test_parse_environment_when_it_is_something_else_then_usage_error_names_the_file(text: str) -> None:
    with pytest.raises(UsageError, match=r"^there\.json is not the output of `khub env --json`"):
        parse_environment(text, origin="there.json")


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=4),
    st.data(),
)
def test_parse_environment_when_any_value_is_replaced_then_reads_it_or_refuses(
    value: object, data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(environment_json(BASE))))
    try:
        parsed = parse_environment(json.dumps({**environment_json(BASE), key: value}), origin="x")
    except UsageError:
        return
    assert parse_environment(json.dumps(environment_json(parsed)), origin="x") == parsed
