"""`khub engine generate` as a process of its own; bad input is refused within this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine_models import SHIPPED, MakeModel, greedy_by_transformers
from khub_process import khub_here

from engine.kernels import SLOTS
from engine.tokenizer import Tokenizer

MAIN = "import sys; from hub_loader.cli import main; sys.exit(main())"


def khub_engine(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, "engine", *map(str, arguments)],
        input=stdin,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_generate_prints_the_slots_then_the_continued_prompt() -> None:
    result = khub_engine("generate", "--model", SHIPPED, "--prompt", "def main(", "--max-tokens", "20")
    assert result.returncode == 0, result.stderr
    slots = [line.split()[:2] for line in result.stderr.splitlines()[1:10]]
    assert slots == [[slot, "torch"] for slot in SLOTS]
    assert "tok/s" in result.stderr
    tokenizer = Tokenizer(SHIPPED)
    (tokens,) = greedy_by_transformers(SHIPPED, [tokenizer.encode("def main(")], 20)
    assert result.stdout == "def main(" + tokenizer.decode(tokens) + "\n"


@pytest.mark.slow
def test_generate_with_a_prompts_file_and_json_then_one_object_in_the_order_of_the_prompts(
    make_model: MakeModel, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("first\n\nsecond prompt\n", encoding="utf-8")
    common = ("generate", "--model", make_model(), "--max-tokens", "4", "--json")
    result = khub_engine(*common, "--prompt", "zeroth", "--prompts-file", prompts)
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert [c["prompt"] for c in data["completions"]] == ["zeroth", "first", "second prompt"]
    assert all(1 <= len(c["tokens"]) <= 4 for c in data["completions"])
    assert {s["slot"]: s["source"] for s in data["slots"]}["attention"] == "torch"
    piped = khub_engine(*common, "--prompts-file", "-", stdin="zeroth\nfirst\nsecond prompt\n")
    assert json.loads(piped.stdout)["completions"] == data["completions"]


@pytest.mark.slow
def test_generate_with_speculate_then_the_same_text_and_how_many_tokens_a_step_brought() -> None:
    common = ("generate", "--model", SHIPPED, "--prompt", "def main(", "--max-tokens", "20")
    plain, guessed = khub_engine(*common), khub_engine(*common, "--speculate", f"tree:{SHIPPED}:8:4")
    assert guessed.returncode == 0, guessed.stderr
    assert guessed.stdout == plain.stdout
    assert "tokens a step" in guessed.stderr and "tokens a step" not in plain.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--model", "."), 2, "no prompt: give --prompt"),
        (("--model", "/nowhere", "--prompt", "x"), 40, "/nowhere has no config.json"),
        (("--model", SHIPPED, "--prompt", "x" * 5000), 2, "exceeds the model's context of 1024"),
        (("--model", SHIPPED, "--prompt", "x", "--top-p", "2"), 2, "top_p is 2.0"),
        (("--model", SHIPPED, "--prompt", "x", "--kernels", "fast"), 2, "write torch, hub, or slot=source"),
        (("--model", SHIPPED, "--prompts-file", "/nowhere"), 2, "--prompts-file /nowhere"),
    ],
    ids=["no-prompt", "no-model", "long-prompt", "top-p", "kernels", "no-file"],
)
def test_generate_with_bad_input_exits_with_its_code_and_one_line(
    arguments: tuple[str | Path, ...], code: int, words: str
) -> None:
    result = khub_here("engine", "generate", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_teaches_by_example_and_needs_no_torch() -> None:
    without_torch = "import sys; sys.modules['torch'] = None\n" + MAIN
    result = subprocess.run(
        [sys.executable, "-c", without_torch, "engine", "generate", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "examples:" in result.stdout
    run = [
        sys.executable,
        "-c",
        without_torch,
        "engine",
        "generate",
        "--model",
        str(SHIPPED),
        "--prompt",
        "x",
    ]
    refused = subprocess.run(run, capture_output=True, text=True)
    assert refused.returncode == 50
    assert "needs 'torch'" in refused.stderr
