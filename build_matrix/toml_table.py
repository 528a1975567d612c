"""One table of a TOML file: typed values on demand, and an error for every key that nobody asked for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from hub_loader.errors import BuildConfigError


class Table:
    """A TOML table that knows where it is, hands out typed values, and refuses what nobody took."""

    def __init__(self, data: Mapping[str, Any], path: str, where: str) -> None:
        self._data = dict(data)
        self._known: list[str] = []
        self._path = path
        self._where = where

    def fail(self, message: str) -> BuildConfigError:
        where = f"[{self._where}] " if self._where else ""
        return BuildConfigError(f"{self._path}: {where}{message}")

    def take(self, key: str, kind: type, default: Any = None, required: bool = False) -> Any:
        self._known.append(key)
        if key not in self._data:
            if required:
                misspelt = difflib.get_close_matches(key, self._data, n=1)
                if misspelt:
                    raise self.fail(f"unknown key {misspelt[0]!r}; did you mean {key!r}?")
                raise self.fail(f"the key {key!r} is missing")
            return default
        value = self._data.pop(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.fail(f"{key!r} must be of type {kind.__name__}, not {type(value).__name__}")
        return value

    def strings(self, key: str, required: bool = False, default: Sequence[str] = ()) -> tuple[str, ...]:
        values = self.take(key, list, list(default), required)
        if not all(isinstance(value, str) for value in values):
            raise self.fail(f"{key!r} must be a list of strings")
        return tuple(values)

    def version(self, key: str) -> tuple[int, int] | None:
        value = self.take(key, str)
        return None if value is None else self.parse_version(key, value)

    def parse_version(self, key: str, value: str) -> tuple[int, int]:
        parts = value.split(".")
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            raise self.fail(f"{key!r} must look like '2.10', not {value!r}")
        return int(parts[0]), int(parts[1])

    def table(self, key: str) -> Table | None:
        value = self.take(key, dict)
        if value is None:
            return None
        return Table(value, self._path, f"{self._where}.{key}" if self._where else key)

    def items(self) -> list[str]:
        return list(self._data)

    def finish(self) -> None:
        for key in self._data:
            close = difflib.get_close_matches(key, self._known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(self._known))}"
            raise self.fail(f"unknown key {key!r}; {hint}")
