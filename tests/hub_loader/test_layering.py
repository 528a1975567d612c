"""What hub_loader may import: the standard library and itself; huggingface_hub only inside functions."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import hub_loader

MODULES = sorted(Path(hub_loader.__file__).parent.rglob("*.py"))


def imported(nodes: list[ast.AST]) -> set[str]:
    """Top-level names of the packages that import statements among `nodes` bring in; relative ones aside."""
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_module_then_imports_only_what_the_design_allows(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert imported(list(tree.body)) <= sys.stdlib_module_names
    assert imported(list(ast.walk(tree))) <= sys.stdlib_module_names | {"huggingface_hub"}
