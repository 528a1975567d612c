"""Draft trees on the published attention package: it sees what plain torch sees, and decoding stays the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from engine_models import MakeModel, mixed_prompts, noisy_copy
from test_speculation import GREEDY, RandomTrees, tokens

from build_matrix.build_toml import read_build_file
from build_matrix.executors import build_cells
from build_matrix.matrix import read_matrix
from build_matrix.plan import plan, select
from build_matrix.toolchain.cache import ToolchainCache
from engine import LLM, torch_ops

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).resolve().parents[2] / "kernels_src" / "paged-attention"
PROMPTS = mixed_prompts(count=4, vocabulary=256, seed=41)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What KHUB_KERNEL_BUILD holds, else built here."""
    if given := os.environ.get("KHUB_KERNEL_BUILD"):
        return Path(given) / SOURCE.name
    out = tmp_path_factory.mktemp("attention")
    build, matrix = read_build_file(SOURCE), read_matrix()
    cells = select(plan(build, matrix)[0], ["torch-stable*-cpu-x86_64*"])
    (outcome,) = build_cells(build, cells, matrix, out, ToolchainCache())
    assert outcome.error is None, outcome.error
    return out


@pytest.mark.parametrize(
    "limits", [{}, {"token_budget": 9}, {"block_size": 3, "share_prefixes": False}], ids=str
)
@pytest.mark.parametrize("speculate", ["tree:{}:12", "trees"])
def test_greedy_tokens_of_trees_on_the_package_are_those_of_plain_decoding(
    package: Path,
    make_model: MakeModel,
    tmp_path: Path,
    speculate: str,
    limits: dict[str, int],
) -> None:
    folder = make_model()
    kernels = {"attention": str(package)}
    expected = tokens(LLM(folder, max_sequences=9).generate(PROMPTS, GREEDY))
    assert tokens(LLM(folder, max_sequences=9, kernels=kernels).generate(PROMPTS, GREEDY)) == expected
    proposer = (
        RandomTrees([(*p, *t) for p, t in zip(PROMPTS, expected, strict=True)])
        if speculate == "trees"
        else speculate.format(noisy_copy(folder, tmp_path, 0.1))
    )
    llm = LLM(folder, max_sequences=9, kernels=kernels, speculate=proposer, **limits)
    row = next(binding for binding in llm.kernel_table if binding.slot == "attention")
    assert (row.source, row.test[:6]) == (str(package), "passed")
    assert tokens(llm.generate(PROMPTS, GREEDY)) == expected
    assert llm.scheduler.counters.accepted_tokens > 0


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"window": 30, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("words", [1, 2, 3])
def test_any_mask_means_the_same_to_the_package_and_to_plain_torch(
    package: Path, make_model: MakeModel, words: int, options: dict[str, float]
) -> None:
    attend = LLM(make_model(), max_sequences=1, kernels={"attention": str(package)}).kernels.attend
    lengths, new = [70, 20, 9, 1], [40, 1, 9, 1]
    query = torch.randn(sum(new), 4, 32)
    caches = torch.randn(2, 20, 16, 2, 32)
    mask = torch.randint(-(2**31), 2**31, (sum(new), words), dtype=torch.int32)
    mask[torch.arange(sum(new)) % 3 == 0] = -1
    own = torch.cat(
        [torch.arange(length - count, length) - length for length, count in zip(lengths, new, strict=True)]
    )
    bit = own + 32 * words  # a token sees itself: of nothing at all plain torch makes no number
    rows = (bit >= 0).nonzero()[:, 0]
    set_bit = torch.ones(len(rows), dtype=torch.int64) << bit[rows] % 32
    mask[rows, bit[rows] // 32] |= set_bit.to(torch.uint32).view(torch.int32)
    arguments = {
        "block_tables": torch.randperm(20).view(4, 5).int(),
        "seq_lens": torch.tensor(lengths, dtype=torch.int32),
        "query_start_loc": torch.tensor([0, *new]).cumsum(0).int(),
        "scale": 0.2,
        "tree_mask": mask,
        **options,
    }
    expected = torch_ops.attend(query.double(), *caches.double(), **arguments)  # type: ignore[arg-type]
    torch.testing.assert_close(attend(query, *caches, **arguments).double(), expected, rtol=1e-4, atol=1e-5)
