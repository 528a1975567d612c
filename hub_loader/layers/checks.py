"""Whether a kernel's layer is fit to lend its forward to another class, as the Hub asks of layers.

Its forward runs with the other layer's `self`, so it may hold no state and no helpers of its own and must take the
same arguments.
"""

from __future__ import annotations

import inspect
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

from ..errors import LayerError
from .modes import Mode

if TYPE_CHECKING:
    from torch import nn

_FLAGS = {"can_torch_compile", "has_backward"}


def check_layer(layer: Any, replaced: type[nn.Module], origin: str) -> None:
    """Check that `layer` is pure and that its forward takes the arguments of `replaced`'s.

    Names, defaults and annotations of the arguments may differ; their number and kinds may not.

    Raises:
        LayerError: it is not; the message names `origin` and what is wrong.
    """
    from torch import nn

    if not (inspect.isclass(layer) and issubclass(layer, nn.Module)):
        raise LayerError(f"{origin} is not a subclass of torch.nn.Module: ask its publisher for one that is")
    if layer.__init__ is not nn.Module.__init__:
        raise LayerError(f"{origin} has an __init__, so it has state: only its forward can be taken")
    extra = sorted(name for name in set(dir(layer)) - set(dir(nn.Module)) - _FLAGS if not _is_dunder(name))
    if extra:
        raise LayerError(
            f"{origin} has members beside forward, which a replaced layer lacks: {', '.join(extra)}"
        )
    theirs, ours = inspect.signature(layer.forward), inspect.signature(replaced.forward)
    if _kinds(theirs) != _kinds(ours):
        raise LayerError(
            f"{origin} takes {_bare(theirs)}, and {replaced.__name__}.forward takes {_bare(ours)}: "
            "map a layer with the same number and kinds of arguments"
        )


def check_promise(layer: type[nn.Module], mapped_for: Mode, origin: str) -> None:
    """Check that a layer can do what it is mapped for.

    Raises:
        LayerError: it is mapped for training without a backward pass, or for torch.compile without support.
    """
    lacks = lacking(layer, mapped_for)
    if lacks:
        raise LayerError(f"{origin} is mapped for {mapped_for} and {lacks}: map it for another mode")


def lacking(layer: type[nn.Module], mode: Mode) -> str | None:
    """What `mode` needs and the layer's flags deny, None if nothing."""
    if Mode.TRAINING in mode and not getattr(layer, "has_backward", True):
        return "has no backward pass (has_backward)"
    if Mode.TORCH_COMPILE in mode and not getattr(layer, "can_torch_compile", False):
        return "does not support torch.compile (can_torch_compile)"
    return None


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _kinds(signature: Signature) -> list[object]:
    return [parameter.kind for parameter in signature.parameters.values()]


def _bare(signature: Signature) -> Signature:
    bare = [p.replace(annotation=Parameter.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=bare, return_annotation=Signature.empty)
