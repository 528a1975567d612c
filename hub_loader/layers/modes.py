"""What a model is kernelized for, and when it may keep a layer as it is."""

from __future__ import annotations

from enum import Flag, auto

from ..errors import UsageError


class Mode(Flag):
    """What a kernel is used for.

    INFERENCE or TRAINING, each alone or together with TORCH_COMPILE. FALLBACK only in a mapping: the
    repository to take where no other mode of the mapping serves.

    Raises:
        UsageError: a combination (`|`) that means nothing.
    """

    FALLBACK = auto()
    TRAINING = auto()
    INFERENCE = auto()
    TORCH_COMPILE = auto()

    def __or__(self, other: Mode) -> Mode:
        union = super().__or__(other)
        if Mode.INFERENCE in union and Mode.TRAINING in union:
            raise UsageError("Mode.INFERENCE and Mode.TRAINING exclude each other: kernelize for one of them")
        if Mode.FALLBACK in union and union != Mode.FALLBACK:
            raise UsageError("Mode.FALLBACK stands alone: map it beside the other modes")
        return union

    def __str__(self) -> str:  # as Python 3.11 writes it; 3.10 turns the order around
        return "Mode." + ("|".join(str(mode.name) for mode in Mode if mode in self) or "0")


class KernelizeFallback(Flag):
    """The cases in which `kernelize` keeps the layer's own forward instead of raising.

    NO_LAYER: the mapping does not name the layer. NO_DEVICE: it has nothing for the device's type.
    NO_COMPATIBLE_PROPERTIES: nothing for the device's compute capability. NO_COMPATIBLE_MODE: nothing for
    the mode, or the kernel itself cannot do it. CANNOT_LOAD: the kernel cannot be had, for lack of a repository, a
    version, a fitting variant, a dependency or a connection. A kernel that is there and is refused (corrupt,
    invalid, unfit) raises in every case. DEFAULT: all but CANNOT_LOAD.
    """

    NONE = 0
    NO_LAYER = auto()
    NO_DEVICE = auto()
    NO_COMPATIBLE_PROPERTIES = auto()
    NO_COMPATIBLE_MODE = auto()
    CANNOT_LOAD = auto()
    DEFAULT = NO_LAYER | NO_DEVICE | NO_COMPATIBLE_PROPERTIES | NO_COMPATIBLE_MODE
    ALL = DEFAULT | CANNOT_LOAD


# For each mode that can be asked for, the modes of a mapping that serve it, best first: a kernel that can do
# more (a backward pass, torch.compile) serves where less is asked.
SERVING: dict[Mode, tuple[Mode, ...]] = {
    Mode.INFERENCE: (
        Mode.INFERENCE,
        Mode.INFERENCE | Mode.TORCH_COMPILE,
        Mode.TRAINING,
        Mode.TRAINING | Mode.TORCH_COMPILE,
        Mode.FALLBACK,
    ),
    Mode.TRAINING: (Mode.TRAINING, Mode.TRAINING | Mode.TORCH_COMPILE, Mode.FALLBACK),
    Mode.INFERENCE | Mode.TORCH_COMPILE: (
        Mode.INFERENCE | Mode.TORCH_COMPILE,
        Mode.TRAINING | Mode.TORCH_COMPILE,
        Mode.FALLBACK,
    ),
    Mode.TRAINING | Mode.TORCH_COMPILE: (Mode.TRAINING | Mode.TORCH_COMPILE, Mode.FALLBACK),
}
