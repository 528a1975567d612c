"""A published benchmark result, `benchmarks/<any name>.json` of a repository. Pure. Format: docs/pages.md."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA = 1
MAX_ROWS = 200
MAX_SERIES = 4


@dataclass(frozen=True)
class Row:
    """One case, and a figure for each series; None: not measured."""

    case: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Benchmark:
    """One result. `series` names the columns, `unit` is that of every figure, `environment` is shown as it is."""

    title: str
    unit: str
    lower_is_better: bool
    series: tuple[str, ...]
    rows: tuple[Row, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def ratio(self, row: Row) -> float | None:
        """How many times better the first series is than the second in this row."""
        if len(row.values) < 2 or not row.values[0] or not row.values[1]:
            return None
        first, second = row.values[:2]
        assert first is not None and second is not None
        return second / first if self.lower_is_better else first / second


def parse_benchmark(data: bytes) -> Benchmark:
    """Parse a result. Raises ValueError with the reason for anything that is not one."""
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    document = _typed(document, dict, "the document")
    if document.get("schema") != SCHEMA:
        raise ValueError(f"schema {str(document.get('schema'))[:40]!r} is not {SCHEMA}")
    series = tuple(_text(name, "a series") for name in _typed(document.get("series"), list, "series"))
    if not 0 < len(series) <= MAX_SERIES or len(set(series)) != len(series):
        raise ValueError(f"series has to name 1 to {MAX_SERIES} different columns")
    rows = _typed(document.get("results"), list, "results")
    if not 0 < len(rows) <= MAX_ROWS:
        raise ValueError(f"results has to hold 1 to {MAX_ROWS} rows")
    environment = _typed(document.get("environment", {}), dict, "environment")
    return Benchmark(
        title=_text(document.get("title"), "title"),
        unit=_text(document.get("unit"), "unit"),
        lower_is_better=_typed(document.get("lower_is_better", True), bool, "lower_is_better"),
        series=series,
        rows=tuple(_row(_typed(row, dict, "a result"), series) for row in rows),
        environment=tuple(
            (_text(key, "a key"), _text(str(value), key)) for key, value in environment.items()
        ),
    )


def _row(row: Mapping[str, Any], series: tuple[str, ...]) -> Row:
    values = _typed(row.get("values"), dict, "values")
    return Row(_text(row.get("case"), "case"), tuple(_figure(values.get(name)) for name in series))


def _figure(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a figure is a number or null")
    try:
        figure = float(value)
    except OverflowError:
        figure = math.inf
    if not math.isfinite(figure) or figure < 0:
        raise ValueError("a figure is finite and not negative")
    return figure


def _text(value: object, what: str) -> str:
    text: str = _typed(value, str, what)
    if not text.strip() or len(text) > 200:
        raise ValueError(f"{what[:40]} has 1 to 200 characters")
    return text


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{what[:40]} is not of type {kind.__name__}")
    return value
