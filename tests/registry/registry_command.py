"""`khub registry` within this process, which is faster than one of its own."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from hub_loader.cli import main


def run(data: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `khub registry ARGUMENTS --data DATA`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["registry", *arguments, "--data", str(data)])
        except SystemExit as end:  # argparse's
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


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
