"""Run `khub`, and the real `khub serve` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
        created = khub("registry", "token", "create", "--data", self.data, "--org", org, *scope)
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
