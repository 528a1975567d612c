"""A file has one idea and a function one thought: what is longer than they allow is here with the reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hub_loader", "build_matrix", "registry", "engine", "benchmarks", "ci")
FILE, FUNCTION = 400, 60  # lines; of a function without its signature and its docstring
LONG_FILES = {
    "engine/engine.py": "the engine's public face: requests in, steps, completions out, with their docstrings",
}
LONG_FUNCTIONS = {
    "engine/models/stdlib-llama/train.py": {"train": "a program that ran once, kept as the record of how"},
}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_is_short_and_so_is_each_of_its_functions_or_the_reason_is_known(path: Path) -> None:
    text, known = path.read_text(encoding="utf-8"), LONG_FUNCTIONS.get(name_of(path), {})
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert {each.name for each in functions if length(each) > FUNCTION} == set(known)
    assert (len(text.splitlines()) > FILE) == (name_of(path) in LONG_FILES)
