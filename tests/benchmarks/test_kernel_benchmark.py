"""The benchmark of the kernels: its grid, its peers, its picture, and the command that starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import part

from hub_loader.commands.bench import NAMES, find_checkout
from hub_loader.errors import UsageError

ROOT = Path(__file__).parents[2]


def test_grid_of_a_model_marks_what_does_not_fit_into_memory() -> None:
    models = part("models")
    llama = models.MODELS["llama-3-8b"]
    grid = list(models.attention_grid(llama, "full", 2, 1 << 30))
    assert len(grid) == len(models.BATCHES["full"]) * len(models.CONTEXTS["full"])
    assert (1, 131072, False) in grid and (1, 16384, True) in grid
    assert (256, 128, True) in grid and (256, 131072, False) in grid


@pytest.mark.parametrize("others", [{}, {"another": lambda: torch.ones(3)}])
def test_measured_case_has_a_ratio_for_each_peer_and_draws(others: dict[str, Any], tmp_path: Path) -> None:
    case, plots = part("case"), part("plots")
    one = lambda: torch.ones(3)  # noqa: E731
    ones = case.Case("ones", "3", torch.float32, 12, one, one, lambda: one().double(), others=others)
    row = case.measure(ones, 3, "cpu", {})
    assert row.relative_error == 0 and row.ratio > 0 and row.percent is None
    assert "of torch eager" in case.line(row)
    assert row.other_ratios.keys() == others.keys()
    for path in plots.draw([row], "a title", tmp_path / "plot.png"):
        assert path.stat().st_size > 1000
    assert (tmp_path / "plot.svg").read_text().lstrip().startswith("<?xml")


def test_measured_case_with_a_wrong_result_is_not_timed() -> None:
    case = part("case")
    wrong = case.Case(
        "wrong",
        "3",
        torch.float32,
        12,
        lambda: torch.zeros(3),
        lambda: torch.ones(3),
        lambda: torch.ones(3).double(),
    )
    with pytest.raises(SystemExit, match="not timed"):
        case.measure(wrong, 3, "cpu", {})


@pytest.mark.parametrize("name", NAMES)
def test_bench_command_shows_the_help_of_each_benchmark(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hub_loader", "bench", name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "options:" in done.stdout


def test_bench_command_outside_of_a_checkout_says_where_to_run_it(tmp_path: Path) -> None:
    assert find_checkout([tmp_path, ROOT]) == ROOT
    with pytest.raises(UsageError, match="in a checkout of kernel-hub's source"):
        find_checkout([tmp_path])
