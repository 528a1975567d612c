"""The repository card, README.md, written from the built package alone: equal packages have equal cards.

The API is read from the Python face's text, which is never imported: a card can be made on a machine that
could not load the kernel.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hub_loader.errors import InvalidKernelError
from hub_loader.manifest import METADATA_NAME, Index, Metadata, parse_metadata, python_name

CARD_NAME = "README.md"
_PLAIN = re.compile(r"[a-z][a-z0-9.+-]*")


@dataclass(frozen=True)
class Entry:
    """One public name: its signature as Python text, and the first line of its docstring or ""."""

    signature: str
    summary: str


@dataclass(frozen=True)
class Api:
    """What a Python face says of itself: the first paragraph of its docstring and its public names."""

    summary: str
    entries: tuple[Entry, ...]


def card(package: Path, index: Index, repo_id: str) -> str:
    """The card of the built `package` as the repository `repo_id` shows it.

    Raises:
        InvalidKernelError: a variant's metadata or Python face cannot be read.
    """
    folders = {name: package / "build" / name for name in index.variants}
    metadata = {
        name: parse_metadata((folder / METADATA_NAME).read_bytes(), origin=str(folder / METADATA_NAME))
        for name, folder in folders.items()
    }
    first = next(iter(sorted(folders)))
    api = read_api(folders[first])
    lines = ["---", *_front_matter(metadata[first]), "---", "", f"# {index.name}", ""]
    lines += [api.summary, ""] if api.summary else []
    lines += [f"A precompiled kernel, version {index.version}: nothing is compiled where it is used.", ""]
    lines += ["## Use", "", *_usage(index, repo_id, metadata[first]), ""]
    if api.entries:
        lines += ["## API", ""]
        for entry in api.entries:
            lines += [
                "```python",
                entry.signature,
                "```",
                "",
                *([entry.summary, ""] if entry.summary else []),
            ]
    lines += ["## Variants", "", "| variant | compute capabilities | size |", "|---|---|---|"]
    for name, variant in sorted(index.variants.items()):
        archs = ", ".join(variant.backend.archs) or "-"
        lines.append(f"| `{name}` | {archs} | {_size(variant.size)} |")
    lines += ["", "## Provenance", "", *_provenance(metadata)]
    return "\n".join(lines) + "\n"


def read_api(folder: Path) -> Api:
    """The API of the Python package in `folder`, from the `__all__` of its `__init__.py`.

    A name defined in a module of the package and imported from there is found there; one without a `def` or
    `class` is listed by name.

    Raises:
        InvalidKernelError: no `__init__.py`, or not Python.
    """
    tree = _parse(folder / "__init__.py")
    doc = ast.get_docstring(tree) or ""
    summary = " ".join(doc.split("\n\n")[0].split())
    return Api(summary, tuple(_entry(folder, tree, name) for name in _public(tree)))


def _public(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign)
            if isinstance(node.value, (ast.List, ast.Tuple)):
                for item in node.value.elts:
                    if isinstance(item, ast.Constant) and isinstance(item.value, str):
                        yield item.value


def _entry(folder: Path, tree: ast.Module, name: str) -> Entry:
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
            returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
            return Entry(f"{name}({_arguments(node)}){returns}", _first_line(node))
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            return Entry(f"class {name}({bases})" if bases else f"class {name}", _first_line(node))
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for alias in node.names:
                if (alias.asname or alias.name) != name:
                    continue
                path = folder.joinpath(*(node.module or alias.name).split("."))
                path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                if path.is_file() and node.module is not None:
                    found = _entry(path.parent, _parse(path), alias.name)
                    return Entry(found.signature.replace(alias.name, name, 1), found.summary)
                if path.is_file():
                    return Entry(name, _first_line(_parse(path)))
    return Entry(name, "")


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    text = ast.unparse(node.args)
    if len(node.name) + len(text) < 88:
        return text
    # One argument a line where a line would be too long to read.
    arguments = node.args
    split: list[str] = []
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    for number, (argument, default) in enumerate(zip(positional, defaults, strict=True), 1):
        split.append(_argument(argument, default))
        split += ["/"] if number == len(arguments.posonlyargs) else []
    if arguments.vararg is not None:
        split.append("*" + ast.unparse(arguments.vararg))
    elif arguments.kwonlyargs:
        split.append("*")
    split += map(_argument, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg is not None:
        split.append("**" + ast.unparse(arguments.kwarg))
    return "".join(f"\n    {argument}," for argument in split) + "\n"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    equals = " = " if argument.annotation is not None else "="
    return ast.unparse(argument) + (equals + ast.unparse(default) if default is not None else "")


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidKernelError(
            f"{path} cannot be read as Python: {error}; build the package again"
        ) from None


def _front_matter(metadata: Metadata) -> list[str]:
    # The Hub knows licences by lower-case SPDX names; a JSON string is a YAML one, whatever it holds.
    name = metadata.license.lower()
    licence = [f"license: {name if _PLAIN.fullmatch(name) else json.dumps(name)}"] if name else []
    return [*licence, "tags:", "- kernel"]


def _usage(index: Index, repo_id: str, metadata: Metadata) -> list[str]:
    name = python_name(index.name)
    lines = ["```python", "from hub_loader import get_kernel", ""]
    lines += [f'{name} = get_kernel("{repo_id}", version={index.version})', "```"]
    if metadata.python_depends:
        lines += ["", f"It needs these Python packages: {', '.join(metadata.python_depends)}."]
    return lines


def _provenance(metadata: dict[str, Metadata]) -> list[str]:
    lines = ["| variant | id | source commit | builder |", "|---|---|---|---|"]
    for name, data in sorted(metadata.items()):
        origin = data.provenance or {}
        kernel, builder = origin.get("kernel", {}), origin.get("kernel-builder", {})
        commit = f"`{kernel['commit'][:12]}`" if kernel.get("commit") else "-"
        commit += " with changes" if kernel.get("dirty") else ""
        lines.append(f"| `{name}` | `{data.id}` | {commit} | {builder.get('version', '-')} |")
    return lines


def _size(size: int) -> str:
    return f"{size / 1024:.0f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"
