"""TOML on every Python we run on: the standard library has it from 3.11 on."""

from __future__ import annotations

import sys
from typing import Any

from .errors import MissingExtraError


def load_toml(text: str) -> dict[str, Any]:
    """The document as a dictionary.

    Raises:
        ValueError: `text` is not TOML.
        MissingExtraError: this is Python 3.10 and `tomli` is not installed.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            raise MissingExtraError("Python 3.10 cannot read TOML by itself: pip install tomli") from None
    return tomllib.loads(text)
