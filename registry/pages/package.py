"""What the pages know of one commit: its card, manifest, variants, provenance and benchmarks. Pure.

Everything in a repository is written by whoever may commit to it: nothing here trusts a word of it, sizes are
bounded, and what cannot be read is told rather than raised.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hub_loader.errors import InvalidKernelError
from hub_loader.manifest import (
    INDEX_NAME,
    METADATA_NAME,
    BackendInfo,
    Index,
    Metadata,
    parse_index,
    parse_metadata,
)
from hub_loader.variant import parse_variant

from ..tree import Entry
from .benchmarks import Benchmark, parse_benchmark
from .matrix import MAX_VARIANTS
from .provenance import Provenance, read_provenance

README = "README.md"
MAX_TEXT = 1 << 20
MAX_INDEX = 8 << 20
MAX_BENCHMARKS = 8
MAX_ARCHS = 64
_BENCHMARK = re.compile(r"benchmarks/[^/]+\.json")
_FRONT_MATTER = re.compile(r"\A---\r?\n.*?\r?\n---\r?\n", re.DOTALL)

Read = Callable[[str, int], bytes | None]
"""The content of the file at a path; None if there is none or it has more bytes than the second argument."""


@dataclass(frozen=True)
class VariantFacts:
    """One variant: `size` in bytes of all of its files; `id` is "" where only the tree tells of it."""

    name: str
    backend: BackendInfo
    id: str
    size: int
    files: int


@dataclass(frozen=True)
class Package:
    """What a commit holds. `problems` are sentences about what could not be read."""

    readme: str
    summary: str
    index: Index | None
    variants: Mapping[str, VariantFacts]
    metadata: Metadata | None
    operators: tuple[str, ...]
    provenance: Provenance
    benchmarks: tuple[Benchmark, ...]
    problems: tuple[str, ...] = ()

    @property
    def backends(self) -> dict[str, BackendInfo]:
        """The variants as the resolver takes them."""
        return {name: variant.backend for name, variant in self.variants.items()}


def read_package(repo_id: str, entries: Mapping[str, Entry], read: Read) -> Package:
    """Read a commit of `repo_id` with these files (path -> entry)."""
    problems: list[str] = []
    readme = _text(read(README, MAX_TEXT)) if README in entries else ""
    index, raw = _index(entries, read, problems)
    variants = _indexed(index) if index is not None else _listed(entries, read, problems)
    for name in [name for name, variant in variants.items() if len(variant.backend.archs) > MAX_ARCHS]:
        del variants[name]
        problems.append(f"{name} names more than {MAX_ARCHS} compute capabilities: it is not shown.")
    if len(variants) > MAX_VARIANTS:
        problems.append(f"Only the first {MAX_VARIANTS} of {len(variants)} variants are shown.")
        variants = dict(list(variants.items())[:MAX_VARIANTS])
    metadata: Metadata | None = None
    operators: tuple[str, ...] = ()
    if variants:
        first = f"build/{next(iter(sorted(variants)))}"
        metadata = _metadata(f"{first}/{METADATA_NAME}", read, problems)
        operators = public_names(_text(read(f"{first}/__init__.py", MAX_TEXT)))
    body = _FRONT_MATTER.sub("", readme, count=1)
    return Package(
        readme=body,
        summary=first_paragraph(body),
        index=index,
        variants=variants,
        metadata=metadata,
        operators=operators,
        provenance=read_provenance(
            lambda path: read(path, MAX_INDEX) if path in entries else None, repo_id, index, raw
        ),
        benchmarks=_benchmarks(entries, read, problems),
        problems=tuple(problems),
    )


def public_names(source: str) -> tuple[str, ...]:
    """The names in the `__all__` of a Python module's text; none where it has none or is no Python."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    for node in body:
        if (
            isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
            and isinstance(node.value, ast.List | ast.Tuple)
        ):
            values = [item.value for item in node.value.elts if isinstance(item, ast.Constant)]
            return tuple(value for value in values if isinstance(value, str) and value.isidentifier())[:500]
    return ()


def first_paragraph(markdown: str) -> str:
    """The first paragraph of plain text in a card, on one line, at most 300 characters."""
    for block in re.split(r"\n\s*\n", markdown):
        text = " ".join(block.split())
        if text and text[0] not in "#<|`!-*>[=":
            text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", text)
            return text if len(text) <= 300 else f"{text[:299].rstrip()}…"
    return ""


def _index(
    entries: Mapping[str, Entry], read: Read, problems: list[str]
) -> tuple[Index | None, bytes | None]:
    if INDEX_NAME not in entries:
        return None, None
    data = read(INDEX_NAME, MAX_INDEX)
    if data is None:
        problems.append(f"{INDEX_NAME} has more than {MAX_INDEX >> 20} MiB: it is not read.")
        return None, None
    try:
        return parse_index(data, origin=INDEX_NAME), data
    except InvalidKernelError as error:
        problems.append(f"{error}.")
        return None, data


def _indexed(index: Index) -> dict[str, VariantFacts]:
    return {
        name: VariantFacts(name, variant.backend, variant.id, variant.size, len(variant.all_files))
        for name, variant in sorted(index.variants.items())
    }


def _listed(entries: Mapping[str, Entry], read: Read, problems: list[str]) -> dict[str, VariantFacts]:
    """The variants of a package without an index, as the tree and each metadata.json tell of them."""
    found: dict[str, list[int]] = {}
    for path, entry in entries.items():
        parts = path.split("/")
        if entry.file is not None and len(parts) > 2 and parts[0] == "build" and _is_variant(parts[1]):
            found.setdefault(parts[1], []).append(entry.file.size)
    variants = {}
    for name, sizes in sorted(found.items())[: MAX_VARIANTS + 1]:
        metadata = _metadata(f"build/{name}/{METADATA_NAME}", read, problems)
        if metadata is not None:
            variants[name] = VariantFacts(name, metadata.backend, metadata.id, sum(sizes), len(sizes))
    return variants


def _is_variant(name: str) -> bool:
    try:
        parse_variant(name)
    except ValueError:
        return False
    return True


def _metadata(path: str, read: Read, problems: list[str]) -> Metadata | None:
    data = read(path, MAX_TEXT)
    if data is None:
        return None
    try:
        return parse_metadata(data, origin=path)
    except InvalidKernelError as error:
        problems.append(f"{error}.")
        return None


def _benchmarks(entries: Mapping[str, Entry], read: Read, problems: list[str]) -> tuple[Benchmark, ...]:
    paths = sorted(path for path in entries if _BENCHMARK.fullmatch(path))
    found = []
    for path in paths[:MAX_BENCHMARKS]:
        try:
            data = read(path, MAX_TEXT)
            if data is None:
                raise ValueError(f"it has more than {MAX_TEXT >> 20} MiB")
            found.append(parse_benchmark(data))
        except ValueError as error:
            problems.append(f"{path} is no benchmark result: {error}.")
    if len(paths) > MAX_BENCHMARKS:
        problems.append(f"Only the first {MAX_BENCHMARKS} of {len(paths)} benchmark results are shown.")
    return tuple(found)


def _text(data: bytes | None) -> str:
    return "" if data is None else data.decode("utf-8", "replace")
