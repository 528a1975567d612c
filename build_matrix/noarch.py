"""Python-only kernels: one variant for each backend, whatever the machine, torch or Python.

Nothing is compiled, so every backend can be packaged here. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from hub_loader.variant import Backend, Framework, Variant

from .build_file import BuildFile

# The Hub's name of a backend in a variant, where it is not the one of build.toml.
_IN_VARIANTS = {"cann": "npu"}


def noarch_variants(build: BuildFile, backends: Sequence[str]) -> list[tuple[Variant, tuple[str, ...]]]:
    """The variant of each backend with the archs its metadata claims: those that `[torch-noarch]` names for it."""
    archs = {"cuda": build.framework.cuda_capabilities, "rocm": build.framework.rocm_archs}
    return [
        (
            Variant(Framework("torch-noarch"), Backend(_IN_VARIANTS.get(name, name))),
            archs.get(name, ()),
        )
        for name in backends
    ]


def build_backend(variant: Variant) -> str:
    """The backend as `build.toml` and `metadata.json` call it."""
    names = {in_variant: name for name, in_variant in _IN_VARIANTS.items()}
    return names.get(variant.backend.name, variant.backend.name)
