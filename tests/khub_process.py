"""Run `khub`, in this process or one of its own, and the real `khub serve`."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hub_loader.cli import main

ROOT = Path(__file__).parents[1]


def khub_command(*arguments: str | Path) -> list[str]:
    """The command line of `khub` from this source tree; run it in `khub_environment()`."""
    code = "import sys; from hub_loader.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *map(str, arguments)]


def khub(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `khub` from this source tree to its end."""
    return subprocess.run(
        khub_command(*arguments),
        env=khub_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def khub_here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `khub` within this process, which saves the seconds that imports take."""
    line, out, err = [*map(str, arguments)], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(line)
        except SystemExit as end:  # argparse's
            code = int(end.code or 0)
    return subprocess.CompletedProcess(line, code, out.getvalue(), err.getvalue())


def khub_environment() -> dict[str, str]:
    """The environment that makes `khub` be this source tree's."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


@dataclass
class Hub:
    """A running registry: its address, its data folder, its process."""

    url: str
    data: Path
    process: subprocess.Popen[str]

    def token(self, org: str, *, write: bool = True) -> str:
        """A new token of `org`, from the command line."""
        scope = ["--write"] if write else []
        created = khub_here("registry", "token", "create", "--data", self.data, "--org", org, *scope)
        assert created.returncode == 0, created.stderr
        return created.stdout.splitlines()[-1]

    def stop(self, how: int = signal.SIGINT) -> int:
        """End the process with a signal; returns its exit code."""
        self.process.send_signal(how)
        code = self.process.wait(timeout=60)  # twice the time that requests under way are given
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


StartHub = Callable[..., Hub]
