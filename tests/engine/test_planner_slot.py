"""The planner slot: the published package lays out the same steps as plain torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from engine_models import MakeModel, mixed_prompts

from build_matrix.build_toml import read_build_file
from build_matrix.executors import build_cells
from build_matrix.matrix import read_matrix
from build_matrix.plan import plan, select
from build_matrix.toolchain.cache import ToolchainCache
from engine import LLM, SamplingParams, torch_ops
from engine.batch import build_batch
from engine.scheduler import Chunk, Sequence, Step
from hub_loader import get_local_kernel

PLANNER = Path(__file__).resolve().parents[2] / "kernels_src" / "batch-planner"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("planner")
    build, matrix = read_build_file(PLANNER), read_matrix()
    cells = select(plan(build, matrix)[0], [f"cp3{sys.version_info.minor}-*"])
    (outcome,) = build_cells(build, cells, matrix, out, ToolchainCache())
    assert outcome.error is None, outcome.error
    return out


def test_a_step_planned_by_the_package_is_the_step_planned_by_torch(package: Path) -> None:
    def chunk(start: int, end: int, total: int, blocks: list[int]) -> Chunk:
        return Chunk(
            Sequence(0, list(range(total)), 5, computed=start, blocks=blocks), start, end, end == total
        )

    step = Step([chunk(19, 20, 20, [8, 1]), chunk(0, 33, 33, [3, 5, 0]), chunk(16, 24, 40, [7, 6])])
    theirs = build_batch(step, 16, get_local_kernel(package).plan_step)
    ours = build_batch(step, 16, torch_ops.plan_step)
    for name, expected in vars(ours).items():
        found = getattr(theirs, name)
        if name == "tree_mask":  # no planner's: it is made when there are draft trees
            assert found is expected is None
            continue
        assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist()), name
    assert torch.equal(ours.sample_rows, torch.tensor([0, 33]))


def test_tokens_with_the_package_in_the_planner_slot_are_the_same(
    package: Path, make_model: MakeModel
) -> None:
    folder, params = make_model(), SamplingParams(max_tokens=8)
    prompts = mixed_prompts(count=12, vocabulary=256, seed=21)
    plain = LLM(folder, token_budget=30, num_blocks=40).generate(prompts, params)
    llm = LLM(folder, token_budget=30, num_blocks=40, kernels={"planner": str(package)})
    assert [c.tokens for c in llm.generate(prompts, params)] == [c.tokens for c in plain]
    assert llm.kernels.bindings[-1].variant.startswith("cp3")
