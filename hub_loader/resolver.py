"""Which variant fits an environment, best first, and why the others do not. Pure. Told in docs/resolver.md.

Filtering. A variant is rejected for the first of these that fails:
    backend     the variant's is the one asked for (default: what torch is built for), or universal; a GPU
                backend needs a torch built for it
    platform    arch and operating system are equal (noarch variants have none)
    framework   exact torch: same major.minor, and the same C++ ABI where the name states it;
                stable ABI: not newer than the installed torch; tvm-ffi: the same major.minor
    version     CUDA: same major as torch's, minor not newer; ROCm, XPU: equal
    Python      an interpreter tag equals the interpreter's; without one a native module needs CPython's
                stable ABI, which free-threaded interpreters do not load
    system      native Linux variants need glibc 2.28 or newer, Metal's need macOS 26
    driver      CUDA's major is not newer than the driver's
    GPU         every visible GPU is covered by an architecture compiled in (unchecked without a GPU, or
                where the variant lists none)

Ordering. exact torch (a name without the C++ ABI first), then exact interpreter without torch, then stable ABI
(newest first), then tvm-ffi, then the noarch variant of the backend, then universal. Within each: a name with
an interpreter tag, the newest CUDA, the name. Names are unique, so the order is total.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .cuda_arch import covers as covers  # part of this module's rules, and looked for here
from .cuda_arch import is_arch
from .environment import Environment
from .errors import NoMatchingVariantError, UsageError
from .manifest import BackendInfo
from .record import Record
from .variant import Variant, Version, dotted, parse_variant

BACKENDS = ("cpu", "cuda", "rocm", "xpu", "metal", "neuron", "tpu", "cann")
MINIMUM_GLIBC: Version = (2, 28)
MINIMUM_MACOS_METAL: Version = (26, 0)

_TIERS = ("torch", "none", "torch-stable-abi", "tvm-ffi", "torch-noarch")
_TIER_NAMES = {
    "torch": "built for exactly this torch",
    "none": "built for exactly this interpreter",
    "torch-stable-abi": "built for torch's stable ABI",
    "tvm-ffi": "built for tvm-ffi",
    "torch-noarch": "needs no compiled code",
}
_LABELS = {"cuda": "CUDA", "rocm": "ROCm", "xpu": "XPU", "metal": "Metal", "cann": "CANN"}
_DETECTED = (
    "cuda",
    "rocm",
    "xpu",
    "metal",
)  # backends that an environment tells; the others are taken on trust
_NOARCH_NAMES = {"cann": "npu"}


class Decision(Record):
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
        backend: one of BACKENDS; None takes the environment's default.

    Raises:
        UsageError: an unknown backend.
        ValueError: a name outside the grammar.
    """
    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}: use one of {', '.join(BACKENDS)}")
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


def _rejection(variant: Variant, info: BackendInfo, environment: Environment, wanted: str) -> str | None:
    return (
        _wrong_backend(variant, environment, wanted)
        or _wrong_platform(variant, environment)
        or _wrong_framework(variant, environment)
        or _no_such_backend(variant, environment, wanted)
        or _wrong_version(variant, environment)
        or _wrong_python(variant, environment)
        or _wrong_system(variant, environment)
        or _wrong_driver(variant, environment)
        or _wrong_gpu(variant, info, environment)
    )


def _wrong_backend(variant: Variant, environment: Environment, wanted: str) -> str | None:
    name = variant.backend.name
    if name in (wanted, "universal") or (variant.is_noarch and name == _NOARCH_NAMES.get(wanted)):
        return None
    if wanted != environment.backend:
        return f"is for {name}, and {wanted} is asked for"
    if environment.torch is None:
        return f"is for {name}, and {wanted} is wanted: there is no torch"
    built = f"built for {_label(wanted)}" if wanted != "cpu" else f"not built for {_label(name)}"
    return f"is for {name}, and {wanted} is wanted: torch is {built}"


def _no_such_backend(variant: Variant, environment: Environment, wanted: str) -> str | None:
    """A GPU backend asked for by name, which torch does not have: nothing may stand in for it."""
    torch = environment.torch
    if wanted not in _DETECTED or wanted == environment.backend:
        return None
    if torch is not None and variant.framework.name.startswith("torch"):
        return f"needs a torch built for {_label(wanted)}, {torch.release} is not"
    return None


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
        return f"needs torch {dotted(framework.version)}, {torch.release} is installed"
    if framework.name == "torch-stable-abi" and framework.version and framework.version > torch.version:
        return f"needs torch {dotted(framework.version)} or newer, {torch.release} is installed"
    if framework.cxx11_abi is not None and framework.cxx11_abi != torch.cxx11_abi:
        names = {True: "the C++11 ABI", False: "the pre-C++11 ABI", None: "an unknown C++ ABI"}
        return f"needs {names[framework.cxx11_abi]}, this torch has {names[torch.cxx11_abi]}"
    return None


def _wrong_tvm_ffi(needed: Version | None, installed: Version | None) -> str | None:
    if installed is None:
        return "needs tvm-ffi, which is not installed"
    if needed != installed:
        return f"needs tvm-ffi {dotted(needed)}, {dotted(installed)} is installed"
    return None


def _wrong_version(variant: Variant, environment: Environment) -> str | None:
    name, needed, torch = variant.backend.name, variant.backend.version, environment.torch
    if needed is None:
        return None
    versions = {} if torch is None else {"cuda": torch.cuda, "rocm": torch.rocm, "xpu": torch.xpu}
    installed = versions.get(name)
    if installed is None:
        return f"needs {_label(name)} {dotted(needed)}, and there is no torch built for {_label(name)}"
    same_major_not_newer = needed[0] == installed[0] and needed <= installed
    if same_major_not_newer if name == "cuda" else needed == installed:
        return None
    return f"needs {_label(name)} {dotted(needed)}, torch has {_label(name)} {dotted(installed)}"


def _wrong_python(variant: Variant, environment: Environment) -> str | None:
    if variant.is_noarch:
        return None
    if variant.python in (None, "abi3"):
        if environment.python.endswith("t"):
            return f"needs CPython's stable ABI, which the free-threaded {environment.python} does not load"
        if not environment.python.startswith("cp"):
            return f"needs CPython's stable ABI, which {environment.python} does not have"
        return None
    if variant.python != environment.python:
        return f"needs the interpreter {variant.python}, this is {environment.python}"
    return None


def _wrong_system(variant: Variant, environment: Environment) -> str | None:
    if variant.backend.name == "metal" and not variant.is_noarch:
        if environment.macos is None or environment.macos < MINIMUM_MACOS_METAL:
            here = "an unknown one" if environment.macos is None else dotted(environment.macos)
            return f"needs macOS {dotted(MINIMUM_MACOS_METAL)} or newer, this is {here}"
        return None
    if variant.platform is None or variant.platform.os != "linux":
        return None
    needs = f"needs glibc {dotted(MINIMUM_GLIBC)} or newer"
    if environment.musl is not None:
        return f"{needs}, this system's C library is musl {dotted(environment.musl)}"
    if environment.glibc is None:
        return f"{needs}, this system's C library is another one"
    if environment.glibc < MINIMUM_GLIBC:
        return f"{needs}, this is {dotted(environment.glibc)}"
    return None


def _wrong_driver(variant: Variant, environment: Environment) -> str | None:
    needed, runs = variant.backend.version, environment.driver_cuda
    if variant.backend.name != "cuda" or needed is None or runs is None or needed[0] <= runs[0]:
        return None
    named = f"the driver {environment.driver}" if environment.driver else "the driver"
    return f"needs a driver for CUDA {needed[0]}, {named} runs CUDA up to {dotted(runs)}"


def _wrong_gpu(variant: Variant, info: BackendInfo, environment: Environment) -> str | None:
    if variant.backend.name != "cuda" or not info.archs:
        return None
    malformed = [arch for arch in info.archs if not is_arch(arch)]
    if malformed:
        return f"lists the malformed compute capability {malformed[0]!r}"
    runs, written_by = environment.driver_cuda, variant.backend.version
    ptx = runs is None or written_by is None or runs >= written_by
    for capability in environment.compute_capabilities:
        if not any(covers(arch, capability, ptx=ptx) for arch in info.archs):
            archs = ", ".join(info.archs)
            why = f"is compiled for compute capability {archs}, a visible GPU has {dotted(capability)}"
            if any(covers(arch, capability) for arch in info.archs):
                why += f", and the driver runs CUDA up to {dotted(runs)}: too old for this PTX"
            return why
    return None


def _preference(variant: Variant, name: str) -> tuple[int, bool, int, int, int, bool, int, int, str]:
    framework, cuda = variant.framework.version or (0, 0), variant.backend.version or (0, 0)
    return (
        _TIERS.index(variant.framework.name),
        variant.backend.name == "universal",
        -framework[0],
        -framework[1],
        2 if variant.python is None else variant.python == "abi3",
        variant.framework.cxx11_abi is not None,
        -cuda[0],
        -cuda[1],
        name,
    )


def _praise(variant: Variant, best: str) -> str:
    tier = _TIER_NAMES[variant.framework.name]
    return f"{tier}; the best fit" if str(variant) == best else f"{tier}; fits, but {best} is preferred"


def _label(backend: str) -> str:
    return _LABELS.get(backend, backend)
