"""The Python axis: the cells of a kernel that binds to CPython's own ABI, one for each interpreter."""

from __future__ import annotations

from collections.abc import Callable

from hub_loader.errors import ToolchainError
from hub_loader.variant import Backend, Framework, Platform, Variant

from .build_file import BuildFile
from .matrix import Cell, Matrix, Unbuildable
from .toolchain.interpreters import Interpreter, interpreter_with_headers


def plan_python(
    build: BuildFile, matrix: Matrix, find: Callable[[str], Interpreter] = interpreter_with_headers
) -> tuple[list[Cell], list[Unbuildable]]:
    """The cells of a `[pybind11]` kernel, and those it cannot have here with the reason.

    `find(tag)` raises ToolchainError for an interpreter whose headers cannot be had; by default it
    looks at this machine. Whose headers they are is part of the cell, and so of the build's id.
    """
    cells: list[Cell] = []
    refused: list[Unbuildable] = []
    for backend in build.general.backends:
        if backend != "cpu":
            refused.append(Unbuildable(backend, "[pybind11] kernels are built for cpu alone"))
            continue
        for tag in matrix.pybind11.pythons:
            variant = Variant(Framework("none"), Backend(backend), Platform("x86_64", matrix.os), tag)
            try:
                release = find(tag).version
            except ToolchainError as error:
                refused.append(Unbuildable(str(variant), str(error)))
            else:
                cells.append(Cell(variant, None, python_release=release, pybind11=matrix.pybind11.package))
    return cells, refused
