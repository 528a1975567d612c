"""`make sanitize`: the kernels' own tests with AddressSanitizer and UndefinedBehaviorSanitizer in the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def commands() -> str:
    """What the target would run, with this interpreter."""
    printed = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", ".venv/.ready-torch-2.13.0", "sanitize"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    return printed[printed.index("KHUB_SANITIZE") :].replace(".venv/bin/python", sys.executable)


def test_sanitize_target_runs_the_tests_of_every_compiled_package() -> None:
    for package in ("paged-attention", "rmsnorm-rotary", "quantized-matmul", "dense-linear"):
        assert f"kernels_src/{package}/tests" in commands()


@pytest.mark.heavy
def test_sanitize_target_finds_nothing_in_the_row_kernels() -> None:
    command = commands().strip().partition(" kernels_src/")[0]
    select = "kernels_src/rmsnorm-rotary/tests/test_rows.py -k '(cpu- or wide) and (7- or 769)'"
    done = subprocess.run(f"{command} {select}", shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
