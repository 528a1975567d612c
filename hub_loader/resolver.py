"""Which variant fits an environment, best first, and why the others do not. Pure.

Filtering. A variant is rejected for the first of these that fails:
    backend     the variant's is the one asked for (default: cuda for a CUDA torch, else cpu), or universal
    platform    arch and operating system are equal (noarch variants have none)
    framework   exact torch: same major.minor, and the same C++ ABI where the name states it;
                stable ABI: not newer than the installed torch; tvm-ffi: same major, not newer
    CUDA        same major as torch's, minor not newer
    Python      an interpreter tag equals the interpreter's; without one a native module needs CPython's
                stable ABI, which free-threaded interpreters do not load
    glibc       native Linux variants need 2.28 or newer
    GPU         every visible GPU is covered by an architecture compiled in (unchecked without a GPU, or
                where the variant lists none)

Ordering. exact torch, then exact interpreter without torch, then stable ABI (newest first), then tvm-ffi
(newest first), then the noarch variant of the backend, then universal; within each the newest CUDA first,
then by name. Names are unique, so the order is total.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .environment import Environment
from .errors import NoMatchingVariantError, UsageError
from .manifest import BackendInfo
from .variant import Variant, Version, parse_variant

BACKENDS = ("cpu", "cuda")
MINIMUM_GLIBC: Version = (2, 28)

_TIERS = ("torch", "none", "torch-stable-abi", "tvm-ffi", "torch-noarch")
_TIER_NAMES = {
    "torch": "built for exactly this torch",
    "none": "built for exactly this interpreter",
    "torch-stable-abi": "built for torch's stable ABI",
    "tvm-ffi": "built for tvm-ffi",
    "torch-noarch": "needs no compiled code",
}
# Suffix "a": this capability only, PTX included. "f": this one and later minors of the family, PTX included.
# None: this one and later minors, and with PTX every later capability.
_ARCH = re.compile(r"(\d+)\.(\d+)([af]?)(\+PTX)?")


@dataclass(frozen=True)
class Decision:
    """One variant's verdict: accepted, or rejected for the stated reason."""

    variant: str
    accepted: bool
    reason: str


def resolve(
    environment: Environment, variants: Mapping[str, BackendInfo], backend: str | None = None
) -> tuple[Decision, ...]:
    """Judge every variant: the accepted ones first, best first, then the rejected ones by name.

    Args:
        environment: what the variants have to run on.
        variants: names in the variant grammar, with the architectures compiled into each.
        backend: "cpu" or "cuda"; None takes the environment's default.

    Raises:
        UsageError: an unknown backend.
        ValueError: a name outside the grammar.
    """
    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}: use {' or '.join(BACKENDS)}")
    wanted = backend or environment.backend
    accepted: list[tuple[Variant, str]] = []
    rejected: list[Decision] = []
    for name, info in variants.items():
        variant = parse_variant(name)
        reason = _rejection(variant, info, environment, wanted)
        if reason is None:
            accepted.append((variant, name))
        else:
            rejected.append(Decision(name, False, reason))
    accepted.sort(key=lambda item: _preference(*item))
    fitting = [Decision(name, True, _praise(variant, accepted[0][1])) for variant, name in accepted]
    return (*fitting, *sorted(rejected, key=lambda decision: decision.variant))


def best(decisions: Sequence[Decision]) -> str | None:
    """The variant to take of what `resolve` returned; None if none fits."""
    return decisions[0].variant if decisions and decisions[0].accepted else None


def choose(
    what: str, environment: Environment, variants: Mapping[str, BackendInfo], backend: str | None = None
) -> str:
    """The best variant for `environment`; `what` names the kernel in errors, the rest is as for `resolve`.

    Raises:
        NoMatchingVariantError: none fits; the message gives the reason for each.
        UsageError: an unknown backend.
    """
    decisions = resolve(environment, variants, backend)
    chosen = best(decisions)
    if chosen is None:
        reasons = "; ".join(f"{decision.variant} {decision.reason}" for decision in decisions)
        raise NoMatchingVariantError(
            f"{what} has no variant that fits here: {reasons or 'it has none at all'}"
        )
    return chosen


def covers(arch: str, capability: Version) -> bool:
    """Whether code compiled for `arch`, e.g. "8.0", "9.0a" or "9.0+PTX", runs on a GPU of `capability`.

    Raises:
        ValueError: `arch` is not written like that.
    """
    match = _ARCH.fullmatch(arch)
    if not match:
        raise ValueError(f"{arch!r} is not a compute capability like 9.0, 9.0a or 9.0+PTX")
    compiled = (int(match[1]), int(match[2]))
    if match[3] == "a":
        return capability == compiled
    if match[4] and not match[3]:
        return capability >= compiled
    return capability[0] == compiled[0] and capability[1] >= compiled[1]


def _rejection(variant: Variant, info: BackendInfo, environment: Environment, wanted: str) -> str | None:
    return (
        _wrong_backend(variant, environment, wanted)
        or _wrong_platform(variant, environment)
        or _wrong_framework(variant, environment)
        or _wrong_cuda(variant, environment)
        or _wrong_python(variant, environment)
        or _wrong_glibc(variant, environment)
        or _wrong_gpu(variant, info, environment)
    )


def _wrong_backend(variant: Variant, environment: Environment, wanted: str) -> str | None:
    if variant.backend.name in (wanted, "universal"):
        return None
    if wanted == environment.backend:
        why = "not built for CUDA" if wanted == "cpu" else "built for CUDA"
        torch = "there is no torch" if environment.torch is None else f"torch is {why}"
        return f"is for {variant.backend.name}, and {wanted} is wanted: {torch}"
    return f"is for {variant.backend.name}, and {wanted} is asked for"


def _wrong_platform(variant: Variant, environment: Environment) -> str | None:
    if variant.platform is None or str(variant.platform) == f"{environment.arch}-{environment.os}":
        return None
    return f"is for {variant.platform}, this machine is {environment.arch}-{environment.os}"


def _wrong_framework(variant: Variant, environment: Environment) -> str | None:
    framework, torch = variant.framework, environment.torch
    if framework.name == "none":
        return None
    if framework.name == "tvm-ffi":
        return _wrong_tvm_ffi(framework.version, environment.tvm_ffi)
    if torch is None:
        return "needs torch, which is not installed"
    if framework.name == "torch" and framework.version != torch.version:
        return f"needs torch {_dotted(framework.version)}, {torch.release} is installed"
    if framework.name == "torch-stable-abi" and framework.version and framework.version > torch.version:
        return f"needs torch {_dotted(framework.version)} or newer, {torch.release} is installed"
    if framework.cxx11_abi is not None and framework.cxx11_abi != torch.cxx11_abi:
        names = {True: "the C++11 ABI", False: "the pre-C++11 ABI", None: "an unknown C++ ABI"}
        return f"needs {names[framework.cxx11_abi]}, this torch has {names[torch.cxx11_abi]}"
    return None


def _wrong_tvm_ffi(needed: Version | None, installed: Version | None) -> str | None:
    if installed is None:
        return "needs tvm-ffi, which is not installed"
    if needed is not None and (needed[0] != installed[0] or needed > installed):
        return f"needs tvm-ffi {_dotted(needed)}, {_dotted(installed)} is installed"
    return None


def _wrong_cuda(variant: Variant, environment: Environment) -> str | None:
    needed = variant.backend.version
    if variant.backend.name != "cuda" or needed is None:
        return None
    installed = environment.torch.cuda if environment.torch is not None else None
    if installed is None:
        return f"needs CUDA {_dotted(needed)}, and there is no torch built for CUDA"
    if needed[0] != installed[0] or needed > installed:
        return f"needs CUDA {_dotted(needed)}, torch has CUDA {_dotted(installed)}"
    return None


def _wrong_python(variant: Variant, environment: Environment) -> str | None:
    if variant.is_noarch:
        return None
    if variant.python in (None, "abi3"):
        if environment.python.endswith("t"):
            return f"needs CPython's stable ABI, which the free-threaded {environment.python} does not load"
        return None
    if variant.python != environment.python:
        return f"needs the interpreter {variant.python}, this is {environment.python}"
    return None


def _wrong_glibc(variant: Variant, environment: Environment) -> str | None:
    if variant.platform is None or variant.platform.os != "linux":
        return None
    if environment.glibc is None:
        return f"needs glibc {_dotted(MINIMUM_GLIBC)} or newer, this system's C library is another one"
    if environment.glibc < MINIMUM_GLIBC:
        return f"needs glibc {_dotted(MINIMUM_GLIBC)} or newer, this is {_dotted(environment.glibc)}"
    return None


def _wrong_gpu(variant: Variant, info: BackendInfo, environment: Environment) -> str | None:
    if variant.backend.name != "cuda" or not info.archs:
        return None
    malformed = [arch for arch in info.archs if not _ARCH.fullmatch(arch)]
    if malformed:
        return f"lists the malformed compute capability {malformed[0]!r}"
    for capability in environment.compute_capabilities:
        if not any(covers(arch, capability) for arch in info.archs):
            return (
                f"is compiled for compute capability {', '.join(info.archs)}, "
                f"a visible GPU has {_dotted(capability)}"
            )
    return None


def _preference(variant: Variant, name: str) -> tuple[int, bool, int, int, int, int, str]:
    framework, cuda = variant.framework.version or (0, 0), variant.backend.version or (0, 0)
    return (
        _TIERS.index(variant.framework.name),
        variant.backend.name == "universal",
        -framework[0],
        -framework[1],
        -cuda[0],
        -cuda[1],
        name,
    )


def _praise(variant: Variant, best: str) -> str:
    tier = _TIER_NAMES[variant.framework.name]
    return f"{tier}; the best fit" if str(variant) == best else f"{tier}; fits, but {best} is preferred"


def _dotted(version: Version | None) -> str:
    return "none" if version is None else f"{version[0]}.{version[1]}"
