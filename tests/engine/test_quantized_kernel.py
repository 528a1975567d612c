"""The published matmul package multiplies what checkpoints store: int4 with groups and zero points, int8 by channel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import quantized_models as stored
import torch
from engine_models import MakeModel
from test_gguf_files import WriteModel, by_transformers, write_gguf  # noqa: F401  a fixture
from test_quantized_checkpoints import BOUNDS, CASES, PROMPT, error_of, logits_of

from build_matrix.build_toml import read_build_file
from build_matrix.executors import build_cells
from build_matrix.matrix import read_matrix
from build_matrix.plan import plan, select
from build_matrix.toolchain.cache import ToolchainCache
from engine import LLM
from hub_loader.cli import main

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).resolve().parents[2] / "kernels_src" / "quantized-matmul"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("matmul")
    build, matrix = read_build_file(SOURCE), read_matrix()
    cells = select(plan(build, matrix)[0], ["torch-stable*-cpu-x86_64*"])
    (outcome,) = build_cells(build, cells, matrix, out, ToolchainCache())
    assert outcome.error is None, outcome.error
    return out


@pytest.fixture(scope="module")
def folder(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        target = tmp_path_factory.mktemp("quantized") / name
        return stored.quantize_folder(make_model("biases", attention_bias=True), target, *CASES[name])

    return make


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", ["awq", "gptq", "gptq-act-order", "packed-int4-asymmetric", "int8", "fp8"])
def test_logits_by_the_package_are_within_the_bound_of_what_is_stored(
    package: Path, folder: Callable[[str], Path], make_model: MakeModel, name: str, dtype: str
) -> None:
    target = folder(name)
    llm = LLM(target, kernels={"matmul": str(package)}, dtype=dtype)
    row = next(binding for binding in llm.kernel_table if binding.slot == "matmul")
    assert row.signature == "none: a folder of this machine"
    served = "fp8" in llm.kernels.formats or name != "fp8"
    assert row.test.startswith("passed" if served else "not needed: fp8 is plain torch's")
    expected = stored.twin_logits(make_model("biases"), target, PROMPT)[-1]
    assert error_of(logits_of(llm, PROMPT), expected) < BOUNDS[dtype]


@pytest.mark.parametrize(
    ("kind", "arch"),
    [("Q4_0", "llama"), ("Q8_0", "qwen3"), ("Q4_K", "llama"), ("Q5_K", "qwen2"), ("Q6_K", "qwen2")],
)
def test_logits_of_a_gguf_file_by_the_package_are_those_of_transformers(
    package: Path,
    write_gguf: WriteModel,  # noqa: F811
    kind: str,
    arch: str,
) -> None:
    path = write_gguf(kind, arch)
    llm = LLM(path, kernels={"matmul": str(package)})
    row = next(binding for binding in llm.kernel_table if binding.slot == "matmul")
    assert row.test.startswith("passed")
    with torch.inference_mode():
        expected = by_transformers(path)(torch.tensor([PROMPT])).logits[0, -1]
    assert error_of(logits_of(llm, PROMPT), expected) < BOUNDS["float32"]


def test_logits_with_8_bit_activations_are_near_those_without(package: Path, make_model: MakeModel) -> None:
    folder, kernels = make_model(), {"matmul": str(package)}
    exact = logits_of(LLM(folder, kernels=kernels, quantize="int4"), PROMPT)
    rounded = logits_of(LLM(folder, kernels=kernels, quantize="w4a8"), PROMPT)
    assert error_of(rounded, exact) < 5e-2


def test_compare_runs_both_sides_of_slot_matmul_on_a_quantized_checkpoint(
    package: Path, folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sides = ["--slot", "matmul", "--with", "torch", str(package)]
    sizes = ["--requests", "2", "--inputs", "8", "--outputs", "3", "--rounds", "1"]
    assert main(["engine", "compare", "--model", str(folder("awq")), *sides, *sizes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["largest_logit_difference"] < 1e-2 * found["largest_logit"]
    tested = [row["test"] for side in found["sides"] for row in side["bindings"] if row["slot"] == "matmul"]
    assert tested[0] == "" and tested[1].startswith("passed")
