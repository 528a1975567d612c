"""Wheel and source distribution, as a user installs them: nothing but the Hub's client and `packaging` beside them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from clean_install import clean_environment, copy_source, run_script, scripts
from khub_process import ROOT

MEMBERS = {
    "build_matrix/matrix.toml",
    "build_matrix/toolchain/fatbinary.sh",
    "build_matrix/include/registration.h",
    "build_matrix/template/build.toml",
    "build_matrix/template/.gitignore",
    "engine/server/page/index.html",
    "registry/migrations/env.py",
    "registry/migrations/versions/0001_baseline.py",
    "registry/pages/static/khub.css",
    "registry/pages/templates/base.html",
    *(f"{package}/py.typed" for package in ("build_matrix", "engine", "hub_loader", "registry")),
}
PYTHONS = [(3, minor) for minor in range(10, 14)]


def run(*command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def interpreter(version: str) -> Path:
    """That Python of this machine, on the path or of pyenv; the test is skipped where there is none."""

    def candidates() -> Iterator[Path]:
        if found := shutil.which(f"python{version}"):
            yield Path(found)
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
        yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))

    for path in candidates():
        if subprocess.run([path, "-c", "import venv"], capture_output=True).returncode == 0:
            return path
    pytest.skip(f"this machine has no Python {version}")


def members(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_wheel_has_the_files_that_are_not_python_and_no_tests(wheel: Path) -> None:
    assert members(wheel) >= MEMBERS
    assert not any(name.startswith(("tests/", "kernels_src/", "docs/")) for name in members(wheel))


@pytest.mark.slow
def test_wheel_of_the_source_distribution_has_the_same_files(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", copy_source(tmp_path / "source"))
    assert next(tmp_path.glob("dist/kernel_hub-*.tar.gz")).stat().st_size < 3_000_000
    assert members(next(tmp_path.glob("dist/*.whl"))) == members(wheel)


@pytest.mark.slow
def test_commands_of_the_install_page_run_in_a_checkout(wheel: Path, tmp_path: Path) -> None:
    variables = clean_environment(tmp_path, wheel)
    (script,) = scripts("install.md", "tests/test_distribution.py")
    printed = run_script(script, copy_source(tmp_path / "checkout"), variables)
    assert f"khub {wheel.name.split('-')[1]}\n" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "version",
    [
        pytest.param("{}.{}".format(*each), marks=[] if each == sys.version_info[:2] else [pytest.mark.heavy])
        for each in PYTHONS
    ],
)
def test_bare_install_has_khub_and_says_what_each_part_needs(
    version: str, wheel: Path, tmp_path: Path
) -> None:
    run(interpreter(version), "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    khub = tmp_path / "venv" / "bin" / "khub"
    run(python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", wheel)
    code = "from importlib.metadata import requires; print([r for r in requires('kernel-hub') if 'extra' not in r])"
    assert run(python, "-c", code).stdout.strip() == "['huggingface_hub>=1.10', 'packaging>=23']"
    run(python, "-m", "pip", "check")
    assert run(khub, "--version").stdout == f"khub {wheel.name.split('-')[1]}\n"
    assert f"python    cp{version.replace('.', '')}" in run(khub, "env").stdout
    project = (ROOT / "pyproject.toml").read_text()
    (commands,) = re.findall(r"\[project.entry-points.\"khub.commands\"\]\n(.*?)\n\n", project, re.DOTALL)
    for command in re.findall(r"^(\w+) =", commands, re.MULTILINE):
        done = subprocess.run([khub, command, "--help"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "") or (
            done.returncode == 50 and "pip install 'kernel-hub[" in done.stderr
        )
    generate = run(khub, "engine", "generate", "--model", tmp_path, "--prompt", "x", code=50)
    assert "kernel-hub[engine]" in generate.stderr
