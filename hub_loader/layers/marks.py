"""Mark layers and functions that kernels may replace. A mark is attributes of the class, the peer's names:

kernel_layer_name   what mappings call the layer
kernel_condition    called with the module: whether to replace this one
_kernel_funcs       of an instance: the marked functions that its forward calls, by name
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from inspect import Parameter
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_Class = TypeVar("_Class", bound=type)


def replace_kernel_forward_from_hub(
    cls: type[nn.Module], layer_name: str, condition: Callable[[nn.Module], bool] | None = None
) -> None:
    """Mark a class of someone else's; the decorator `use_kernel_forward_from_hub` is for your own.

    Args:
        cls: its instances become replaceable, those that exist as well.
        layer_name: the name under which a mapping gives a kernel.
        condition: called with each instance by `kernelize`; where it is false the instance stays as it is.
    """
    marked: Any = cls
    marked.kernel_layer_name = layer_name
    marked.kernel_condition = staticmethod(condition if condition is not None else _always)


def use_kernel_forward_from_hub(
    layer_name: str, condition: Callable[[nn.Module], bool] | None = None
) -> Callable[[Any], Any]:
    """Decorator that marks a layer, or makes a marked layer out of a function.

    A function becomes an instance of a torch module, which is called like it. `kernelize` finds it
    where it is a submodule or named by `use_kernelized_func`; as there is one of it, replacing it
    replaces it for every model that calls it.

    Args:
        layer_name: as for `replace_kernel_forward_from_hub`.
        condition: as for `replace_kernel_forward_from_hub`.

    Raises:
        UsageError: it decorates neither a class nor a function.
    """

    def mark(target: Any) -> Any:
        if not inspect.isclass(target) and not inspect.isfunction(target):
            raise UsageError(
                f"@use_kernel_forward_from_hub({layer_name!r}) marks a class or a function, not {target!r}"
            )
        cls: Any = target if inspect.isclass(target) else _shared_function_layer(target)
        replace_kernel_forward_from_hub(cls, layer_name, condition)
        return cls if cls is target else cls()

    return mark


def use_kernel_func_from_hub(func_name: str) -> Callable[[Any], Any]:
    """`use_kernel_forward_from_hub` under the name that functions once had in the `kernels` package."""
    return use_kernel_forward_from_hub(func_name)


def use_kernelized_func(*functions: Any) -> Callable[[_Class], _Class]:
    """Decorator that tells `kernelize` which marked functions the forward of a class calls.

    Args:
        functions: results of `use_kernel_forward_from_hub`; lists of them count as their members.

    Raises:
        UsageError: a function is not marked.
    """
    attached = dict(_named(functions))

    def attach(cls: _Class) -> _Class:
        marked: Any = cls
        original = marked.__init__

        @functools.wraps(original)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.__dict__.setdefault("_kernel_funcs", {}).update(attached)

        marked.__init__ = init
        return cls

    return attach


def function_layer(function: Callable[..., Any]) -> type[nn.Module]:
    """A stateless layer whose forward is `function`, with its signature after `self` and its flags."""
    from torch import nn

    class Function(nn.Module):
        can_torch_compile = getattr(function, "can_torch_compile", False)
        has_backward = getattr(function, "has_backward", True)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    signature = inspect.signature(function)
    itself = Parameter("self", Parameter.POSITIONAL_ONLY)
    if all(p.kind is not Parameter.POSITIONAL_ONLY for p in signature.parameters.values()):
        itself = itself.replace(kind=Parameter.POSITIONAL_OR_KEYWORD)
    forward: Any = Function.forward
    forward.__signature__ = signature.replace(parameters=[itself, *signature.parameters.values()])
    Function.__name__ = Function.__qualname__ = function.__name__
    Function.__module__ = function.__module__
    return Function


def _shared_function_layer(function: Callable[..., Any]) -> type[nn.Module]:
    """`function_layer` for a function of the user's: the one instance stands for it in every copy of a model.

    A model that is copied or pickled would otherwise hold a copy that its forward never calls.
    """

    def reduce(self: nn.Module) -> str:
        return function.__name__

    members = {
        "__deepcopy__": lambda self, memo: self,
        "__copy__": lambda self: self,
        "__reduce__": reduce,
        "__name__": function.__name__,
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__wrapped__": staticmethod(function),
    }
    return type(function.__name__, (function_layer(function),), members)


def _named(functions: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    for function in functions:
        if isinstance(function, (list, tuple)):
            yield from _named(function)
        elif not hasattr(function, "kernel_layer_name"):
            name = getattr(function, "__name__", repr(function))
            raise UsageError(f"{name} is not marked: decorate it with @use_kernel_forward_from_hub first")
        else:
            yield getattr(function, "__name__", None) or function.kernel_layer_name, function


def _always(module: nn.Module) -> bool:
    return True
