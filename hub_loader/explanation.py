"""Explain a package folder without a hub, and show an explanation as text or as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .environment import Environment, detect_environment
from .environment_text import environment_json, summary
from .errors import UsageError
from .kernels import Explanation
from .local import backend_in
from .manifest import INDEX_NAME, METADATA_NAME, BackendInfo, parse_index
from .resolver import Decision, best, resolve

_HEADER = ("variant", "verdict", "reason")
_VERDICT_WIDTH = len("verdict")


def explain_folder(
    path: str | Path, *, backend: str | None = None, environment: Environment | None = None
) -> Explanation:
    """Say for each variant of the package folder `path` whether it fits `environment` (None: this one), and why.

    Sends no request and loads nothing. `path` is a package folder (index.json and build/), its build folder, or
    the folder of one variant. The explanation's `repo_id` is the folder, its `revision` empty.

    Raises:
        UsageError: there is no kernel package at `path`, or the backend is unknown.
        InvalidKernelError: a manifest is malformed, or a folder is not named like a variant.
    """
    folder = Path(path).absolute()
    variants = _read_variants(folder)
    if not variants:
        raise UsageError(f"{folder} holds no kernel: pass a folder with build/<variant>/{METADATA_NAME}")
    decisions = resolve(environment or detect_environment(), variants, backend)
    return Explanation(str(folder), "", best(decisions), decisions)


def explanation_json(explanation: Explanation, environment: Environment) -> dict[str, Any]:
    """The explanation, and the environment that it was made for."""
    data = asdict(explanation)
    data["revision"] = data["revision"] or None
    return {**data, "environment": environment_json(environment) | {"backend": environment.backend}}


def as_text(explanation: Explanation, environment: Environment) -> str:
    """A line for the kernel, one for the environment, one for each variant."""
    width = max((len(decision.variant) for decision in explanation.decisions), default=0)
    lines = [_title(explanation), *_signed(explanation), f"for {summary(environment)}"]
    for decision in explanation.decisions:
        verdict = _verdict(explanation, decision)
        lines.append(f"  {decision.variant:<{width}}  {verdict:<6}  {decision.reason}")
    if explanation.chosen is None:
        lines.append("  no variant fits")
    return "\n".join(lines)


def as_table(explanation: Explanation, environment: Environment, width: int) -> str:
    """A ruled table of at most `width` columns where the names leave room; reasons are wrapped."""
    name = max((len(d.variant) for d in explanation.decisions), default=len(_HEADER[0]))
    name = max(name, len(_HEADER[0]))
    columns = (name, _VERDICT_WIDTH, max(width - name - _VERDICT_WIDTH - 10, 30))
    signed = [line for text in _signed(explanation) for line in textwrap.wrap(text, max(width, 40))]
    lines = [_title(explanation), *signed, *textwrap.wrap(f"for {summary(environment)}", max(width, 40))]
    lines += [_rule(("┌", "┬", "┐"), columns), *_row(_HEADER, columns), _rule(("├", "┼", "┤"), columns)]
    for decision in explanation.decisions:
        lines += _row((decision.variant, _verdict(explanation, decision), decision.reason), columns)
    lines.append(_rule(("└", "┴", "┘"), columns))
    if explanation.chosen is None:
        lines.append("no variant fits")
    return "\n".join(lines)


def _title(explanation: Explanation) -> str:
    at = f" at {explanation.revision[:12]}" if explanation.revision else ""
    return f"{explanation.repo_id}{at}"


def _signed(explanation: Explanation) -> list[str]:
    return [explanation.signed] if explanation.signed else []


def _verdict(explanation: Explanation, decision: Decision) -> str:
    if decision.variant == explanation.chosen:
        return "chosen"
    return "fits" if decision.accepted else "no"


def _rule(corners: tuple[str, str, str], columns: tuple[int, ...]) -> str:
    left, middle, right = corners
    return left + middle.join("─" * (width + 2) for width in columns) + right


def _row(cells: tuple[str, str, str], columns: tuple[int, int, int]) -> Iterator[str]:
    reason = textwrap.wrap(cells[2], columns[2]) or [""]
    for number, line in enumerate(reason):
        first = cells[:2] if number == 0 else ("", "")
        parts = (f"{text:<{width}}" for text, width in zip((*first, line), columns, strict=True))
        yield f"│ {' │ '.join(parts)} │"


def _read_variants(folder: Path) -> Mapping[str, BackendInfo]:
    index = folder / INDEX_NAME
    if index.is_file():
        variants = parse_index(index.read_bytes(), origin=str(index)).variants
        return {name: variant.backend for name, variant in variants.items()}
    if (folder / METADATA_NAME).is_file():
        return {folder.name: backend_in(folder)}
    build = folder / "build" if (folder / "build").is_dir() else folder
    if not build.is_dir():
        return {}
    return {path.name: backend_in(path) for path in build.iterdir() if (path / METADATA_NAME).is_file()}
