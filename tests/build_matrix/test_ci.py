"""The pipeline: the workflows' commands exist, and the same steps run here."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from khub_process import khub_command, khub_environment

from hub_loader.errors import CompileError, IntegrityError
from hub_loader.manifest import parse_index

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("tiny-relu")
STABLE, EXACT = "torch-stable-abi210-cpu-x86_64-linux", "torch213-cxx11-cpu-x86_64-linux"
WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")
}


def run(*words: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(str, words)),
        cwd=ROOT,
        env=khub_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def steps() -> Iterator[dict[str, Any]]:
    for workflow in WORKFLOWS.values():
        for job in workflow["jobs"].values():
            yield from job.get("steps", [])


def commands(program: str) -> list[list[str]]:
    """The words of each command line of `program` in the workflows, expressions and redirections aside."""
    found = []
    for step in steps():
        for line in step.get("run", "").splitlines():
            line = re.sub(r"\$\{\{.*?\}\}", "value", line).replace("$OIDC", "--oidc")
            words = shlex.split(line, comments=True)
            if words[:1] == [program]:
                end = next((i for i, word in enumerate(words) if word in (">", ">>", "|")), len(words))
                found.append(words[1:end])
    return found


def test_every_khub_command_of_the_workflows_is_one_that_khub_understands() -> None:
    used = commands("khub")
    assert {words[0] for words in used} == {"matrix", "build", "audit", "publish"}
    for name, *arguments in used:
        (entry_point,) = entry_points(group="khub.commands", name=name)
        parser = argparse.ArgumentParser()
        entry_point.load()(parser)
        parser.parse_args(arguments)  # exits when the arguments are not understood


def test_every_script_and_workflow_that_is_named_exists() -> None:
    scripts = commands("python")
    assert scripts
    for words in scripts:
        assert (ROOT / words[0]).is_file()
    for workflow in WORKFLOWS.values():
        for job in workflow["jobs"].values():
            needs = job.get("needs", [])
            assert set([needs] if isinstance(needs, str) else needs) <= set(workflow["jobs"])
            local = job.get("uses", "")
            assert not local or (ROOT / local).is_file()


def test_workflows_give_no_job_more_than_it_needs() -> None:
    assert WORKFLOWS["build.yml"]["permissions"] == {"contents": "read"}
    for step in steps():
        secrets = re.findall(r"secrets\.(\w+)", json.dumps(step))
        assert set(secrets) <= {"HF_ENDPOINT", "HF_TOKEN", "KHUB_SIGNING_KEY"}
        assert not secrets or step["name"] == "Publish"


def test_matrix_for_github_is_one_line_with_a_job_for_each_cell_of_each_kernel() -> None:
    kernels = [ROOT / "kernels_src" / "paged-attention", TINY]
    done = run(
        *khub_command(
            "matrix", *kernels, "--select", "{torch-stable-abi210,torch213-cxx11}-cpu-x86_64-*", "--github"
        )
    )
    assert done.stdout.count("\n") == 1
    name, _, value = done.stdout.partition("=")
    jobs = json.loads(value)["include"]
    assert name == "matrix"
    assert [(job["name"], job["select"]) for job in jobs] == [
        ("paged-attention", STABLE),
        ("paged-attention", EXACT),
        ("tiny-relu", STABLE),
        ("tiny-relu", EXACT),
    ]
    assert [job["kernel"] for job in jobs[::2]] == [str(kernel) for kernel in kernels]


def test_build_in_github_actions_folds_each_cells_log_and_marks_failures(tmp_path: Path) -> None:
    kernel = tmp_path / "tiny-relu"
    run("cp", "-r", TINY, kernel)
    (kernel / "csrc" / "relu.cpp").write_text("this is not C++\n")
    build = khub_command("build", kernel, "--select", STABLE, "--out", tmp_path / "package")
    printed = run(*build, code=CompileError.exit_code, GITHUB_ACTIONS="true").stdout
    group = printed[printed.index("::group::FAILED") : printed.index("::endgroup::")]
    assert "relu.cpp:1" in group
    assert f"::error title={STABLE}::" in printed
    assert re.search(rf"{STABLE} .* failed \(CompileError\)", printed)


def test_build_all_builds_each_cell_apart_merges_audits_and_prints_the_table(tmp_path: Path) -> None:
    out = tmp_path / "dist"
    done = run(
        sys.executable,
        "ci/build_all.py",
        "--kernel",
        TINY,
        "--select",
        "{torch-stable-abi210,torch213-cxx11}-cpu-x86_64-*",
        "--out",
        out,
    )
    index = parse_index((out / "tiny-relu" / "index.json").read_bytes(), origin="index.json")
    assert sorted(index.variants) == [STABLE, EXACT]
    assert "**2 of 2 variants built**" in done.stdout
    assert f"| tiny-relu | `{EXACT}` |" in done.stdout
    # Apart or together, the package is the same.
    together = tmp_path / "together"
    run(
        *khub_command(
            "build", TINY, "--select", "{torch-stable-abi210,torch213-cxx11}-cpu-x86_64-*", "--out", together
        )
    )
    assert (together / "index.json").read_bytes() == (out / "tiny-relu" / "index.json").read_bytes()


def test_build_all_when_a_cell_fails_builds_the_others_and_says_why(tmp_path: Path) -> None:
    kernel = tmp_path / "tiny-relu"
    run("cp", "-r", TINY, kernel)
    source = kernel / "torch-ext" / "torch_binding.cpp"
    source.write_text(
        "#ifndef TORCH_TARGET_VERSION\n#error exact builds break\n#endif\n" + source.read_text()
    )
    out = tmp_path / "dist"
    done = run(
        sys.executable,
        "ci/build_all.py",
        "--kernel",
        kernel,
        "--select",
        "{torch-stable-abi210,torch213-cxx11}-cpu-x86_64-*",
        "--out",
        out,
        code=1,
    )
    assert "**1 of 2 variants built**" in done.stdout
    assert "exact builds break" in done.stdout
    index = parse_index((out / "tiny-relu" / "index.json").read_bytes(), origin="index.json")
    assert list(index.variants) == [STABLE]


def test_triton_twin_built_apart_ends_in_the_package_of_the_compiled_variants(tmp_path: Path) -> None:
    source, parts = ROOT / "kernels_src" / "rmsnorm-rotary", [tmp_path / "compiled", tmp_path / "triton"]
    run(*khub_command("build", source, "--select", STABLE, "--out", parts[0]))
    run(*khub_command("build", source / "triton", "--out", parts[1]))
    out = tmp_path / "dist"
    run(sys.executable, ROOT / "ci" / "merge.py", out, *parts)
    assert {path.name for path in (out / "build").iterdir()} == {STABLE, "torch-cuda"}
    assert run(*khub_command("audit", out)).returncode == 0


@pytest.mark.parametrize("change", ["changed", "added"])
def test_merge_of_a_part_that_was_changed_is_refused(tmp_path: Path, change: str) -> None:
    part = tmp_path / "part"
    run(*khub_command("build", TINY, "--select", STABLE, "--out", part))
    folder = part / "build" / STABLE
    (folder / ("_ops.py" if change == "changed" else "more.py")).write_text("import os\n")
    done = run(sys.executable, "ci/merge.py", tmp_path / "out", part, code=IntegrityError.exit_code)
    assert "metadata lists" in done.stderr
    assert not (tmp_path / "out").exists()
