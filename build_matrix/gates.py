"""The gates a variant passes before it is packaged: what was checked, the verdict, a sentence.

The static ones read the library's own tables and need nothing; the load gates run the variant in the oldest and
the newest torch that its name promises, one process each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hub_loader.errors import AuditError

from .audit import CHECKS, Promise, leaked_paths, read_library


@dataclass(frozen=True)
class Verdict:
    """One gate's answer. `passed` is None where the gate could not be tried here; `sentence` says why."""

    gate: str
    passed: bool | None
    sentence: str

    def __str__(self) -> str:
        return f"{self.gate}: {self.sentence}"


def static_verdicts(library: Path, promise: Promise, private: Sequence[Path] = ()) -> list[Verdict]:
    """Hold a library against what its variant's name and metadata promise; `private` are paths it must not contain.

    Raises:
        AuditError: not a shared library.
    """
    read = read_library(library)
    found = {gate: check(read, promise) for gate, check in CHECKS.items()}
    found["paths"] = leaked_paths(library.read_bytes(), private)
    return [
        Verdict(gate, not sentences, "; ".join(sentences) or "as promised")
        for gate, sentences in found.items()
    ]


def unique_ids(ids: Iterable[tuple[str, str]]) -> list[Verdict]:
    """One verdict per (variant, id): no two variants of a package share an operator namespace."""
    owners: dict[str, str] = {}
    verdicts = []
    for variant, kernel_id in ids:
        owner = owners.setdefault(kernel_id, variant)
        sentence = "as promised" if owner == variant else f"its id {kernel_id} is also that of {owner}"
        verdicts.append(Verdict("id", owner == variant, sentence))
    return verdicts


def require(what: str, verdicts: Sequence[Verdict]) -> None:
    """Raise unless no gate failed.

    Raises:
        AuditError: with every failure.
    """
    failed = [verdict.sentence for verdict in verdicts if verdict.passed is False]
    if failed:
        raise AuditError(f"{what}: " + "; ".join(failed))
