"""Exit codes: distinct, stable, and documented as they are."""

from __future__ import annotations

import re
from pathlib import Path

from hub_loader import errors
from hub_loader.errors import KernelHubError

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"


def classes() -> dict[str, type[KernelHubError]]:
    found = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    return {name: value for name, value in found.items() if issubclass(value, KernelHubError)}


def test_exit_codes_are_distinct() -> None:
    codes = [error.exit_code for error in classes().values()]
    assert len(codes) == len(set(codes))


def test_errors_page_lists_every_class_with_its_code_and_first_sentence() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    documented = {name: (int(code), meaning) for code, name, meaning in rows}
    expected = {
        name: (error.exit_code, " ".join((error.__doc__ or "").split())) for name, error in classes().items()
    }
    assert documented == expected
