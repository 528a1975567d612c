"""A model's dense parts through torch.compile: fused by torch, and the same tokens.

What lies between two layers' attention is one function of tensors, so the layers share what was compiled for the
first. Attention itself reads lengths and tables and stays a kernel's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Result = TypeVar("Result")


def compiled(part: Callable[Given, Result]) -> Callable[Given, Result]:
    """The part, compiled when it first runs for one token, for several, and for other numbers of them.

    It has to be one graph: a kernel that torch cannot trace fails then, and is not worked around.
    """
    function: Callable[Given, Result] = torch.compile(part, fullgraph=True)
    return function
