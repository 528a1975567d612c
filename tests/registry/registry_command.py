"""`khub registry` within this process, which is faster than one of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from khub_process import khub_here


def run(data: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `khub registry ARGUMENTS --data DATA`."""
    done = khub_here("registry", *arguments, "--data", data)
    return done.returncode, done.stdout, done.stderr


def registry(data: Path, *arguments: str) -> str:
    """Its stdout, when it has to succeed."""
    code, out, err = run(data, *arguments)
    assert code == 0, err
    return out


def registry_json(data: Path, *arguments: str) -> Any:
    """What it prints with --json."""
    return json.loads(registry(data, *arguments, "--json"))


def new_token(data: Path, *arguments: str) -> str:
    """A token made with these arguments."""
    return registry(data, "token", "create", *arguments).splitlines()[-1]
