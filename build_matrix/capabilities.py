"""CUDA compute capabilities: which of those a kernel names a compiler can compile, for each component. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hub_loader.errors import BuildConfigError

from .build_file import BuildFile, Component
from .matrix import CudaRelease

_CAPABILITY = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")


def is_capability(text: str) -> bool:
    """Whether `text` is spelt like "9.0", "9.0a" (that device alone), "10.0f" (its family) or "9.0+PTX"."""
    return _CAPABILITY.fullmatch(text) is not None


def capability_key(capability: str) -> tuple[int, int, str]:
    """Sort key: major, minor and what follows them.

    Raises:
        ValueError: it is not spelt like a capability.
    """
    match = _CAPABILITY.fullmatch(capability)
    if match is None:
        raise ValueError(f"{capability!r} is no compute capability")
    return int(match[1]), int(match[2]), match[3] + (match[4] or "")


def check_capabilities(build: BuildFile, compilers: Iterable[CudaRelease]) -> None:
    """Refuse a component whose capabilities no compiler knows at all.

    Raises:
        BuildConfigError: names the component and what is known.
    """
    compilers = tuple(compilers)
    supported = sorted({s for compiler in compilers for s in compiler.supported}, key=capability_key)
    for component in build.components:
        named = component.cuda_capabilities
        if named and not any(known(named, compiler) for compiler in compilers):
            raise BuildConfigError(
                f"{build.folder / 'build.toml'}: [kernel.{component.name}] names the CUDA capabilities "
                f"{', '.join(named)}, which no compiler here knows: "
                f"name some of {', '.join(supported)}"
            )


def cuda_capabilities(
    components: Sequence[Component], compiler: CudaRelease
) -> tuple[tuple[str, ...], list[str]]:
    """What one CUDA variant compiles for over all its components, and what it leaves out and why.

    Nothing is compiled, and the first is empty, when a component has no capability that `compiler` knows.
    """
    version = f"CUDA {compiler.version[0]}.{compiler.version[1]}"
    usable = of_version(components, compiler.version)
    if components and not usable:
        return (), [f"every component asks for a newer CUDA than {compiler.version[0]}.{compiler.version[1]}"]
    chosen: set[str] = set() if usable else set(compiler.capabilities)
    problems = []
    for component in usable:
        named = component.cuda_capabilities
        kept = component_capabilities(component, compiler)
        if not kept:
            return (), [f"{version} knows none of {', '.join(named)}, which [kernel.{component.name}] names"]
        chosen |= set(kept)
        missing = [capability for capability in named if capability not in kept]
        if missing:
            problems.append(
                f"built without {', '.join(missing)} of [kernel.{component.name}], which {version} lacks"
            )
    return union(chosen), problems


def component_capabilities(component: Component, compiler: CudaRelease) -> tuple[str, ...]:
    """What `compiler` compiles one component for: what it names and the compiler knows, else the default."""
    if not component.cuda_capabilities:
        return compiler.capabilities
    return known(component.cuda_capabilities, compiler)


def of_version(components: Iterable[Component], cuda: tuple[int, int]) -> list[Component]:
    """The components that `cuda` is not too old for."""
    return [c for c in components if c.cuda_minver is None or c.cuda_minver <= cuda]


def known(named: Iterable[str], compiler: CudaRelease) -> tuple[str, ...]:
    """Those of `named` that `compiler` knows, in the order named.

    Of what it has a newer assembler for there is plain code alone: "12.0a" is left out, "12.0+PTX" is "12.0".
    """
    found = []
    for capability in named:
        major, minor, suffix = capability_key(capability)
        if is_assembled(plain := f"{major}.{minor}", compiler):
            found += [plain] if suffix in ("", "+PTX") else []
        elif _is_known(capability, compiler.supported):
            found.append(capability)
    return tuple(dict.fromkeys(found))


def is_assembled(capability: str, compiler: CudaRelease) -> bool:
    """Whether the code for a plain capability comes from an assembler newer than `compiler`."""
    return compiler.assembler is not None and capability in compiler.assembler.capabilities


def union(capabilities: Iterable[str]) -> tuple[str, ...]:
    """Each capability once, ascending; "9.0+PTX" includes "9.0"."""
    found = set(capabilities)
    return tuple(sorted((c for c in found if f"{c}+PTX" not in found), key=capability_key))


def _is_known(capability: str, supported: Sequence[str]) -> bool:
    major, minor, suffix = capability_key(capability)
    # Architecture-specific code exists from Hopper on, family-specific code from Blackwell on.
    oldest = {"a": (9, 0), "f": (10, 0)}.get(suffix[:1], (0, 0))
    return f"{major}.{minor}" in supported and (major, minor) >= oldest
