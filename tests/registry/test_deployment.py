"""ci/khub.service and ci/Containerfile: as far as they can be checked without systemd running or a container."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from khub_process import ROOT

from registry.cli import add_serve
from registry.telemetry.options import options_of

UNIT = (ROOT / "ci" / "khub.service").read_text()
CONTAINER = (ROOT / "ci" / "Containerfile").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()


def served(command: list[str]) -> argparse.Namespace:
    """What `khub serve` understands of a command line; exits if it does not."""
    assert command[:2] == [command[0], "serve"] and command[0].rpartition("/")[2] == "khub"
    parser = argparse.ArgumentParser()
    add_serve(parser)
    return parser.parse_args(command[2:])


def settings() -> dict[str, str]:
    return dict(line.split("=", 1) for line in UNIT.splitlines() if re.match(r"[A-Z]\w*=", line))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_unit_when_systemd_reads_it_then_it_has_no_complaint(tmp_path: Path) -> None:
    program = settings()["ExecStart"].split()[0]
    unit = tmp_path / "khub.service"
    unit.write_text(UNIT.replace(program, sys.executable).replace("User=kernel-hub", "User=root"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "khub" in line]) == (0, [])


def test_unit_when_it_stops_then_systemd_waits_longer_than_the_grace() -> None:
    unit = settings()
    arguments = served(shlex.split(unit["ExecStart"]))
    options = options_of(arguments)
    assert int(unit["TimeoutStopSec"]) > options.grace + options.notice
    assert str(arguments.data) == f"/var/lib/{unit['StateDirectory']}"
    assert (arguments.host, unit["KillSignal"], options.log_format) == ("127.0.0.1", "SIGTERM", "json")


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", CONTAINER, flags=re.MULTILINE))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def test_container_when_its_file_is_read_then_every_instruction_makes_sense() -> None:
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL"}
    found = instructions()
    assert {word for word, _ in found} == known | {"HEALTHCHECK", "ENTRYPOINT"}
    last = dict(found[max(i for i, (word, _) in enumerate(found) if word == "FROM") :])
    assert last["USER"] not in ("0", "root") and last["STOPSIGNAL"] == "SIGTERM"
    arguments = served(json.loads(last["ENTRYPOINT"]))
    assert (str(arguments.data), str(arguments.port)) == (last["VOLUME"], last["EXPOSE"])
    check = json.loads(last["HEALTHCHECK"].removeprefix("CMD "))
    assert check[:2] == ["python", "-c"] and f":{arguments.port}/healthz" in check[2]
    compile(check[2], "healthcheck", "exec")
    base = dict(rest.split("=") for word, rest in found if word == "ARG")["BASE"]
    assert re.fullmatch(r"\S+:\d+\.\d+\S*", base)  # a version, not what is newest on the day
    for word, rest in found:
        if word == "RUN":
            subprocess.run(["sh", "-nc", rest], check=True)
        if word == "COPY" and "--from" not in rest:
            assert all((ROOT / source).exists() for source in rest.split()[:-1])
    (extras,) = re.findall(r"'\.\[(.*)]'", CONTAINER)
    assert all(re.search(rf"^{extra} = \[", PROJECT, re.MULTILINE) for extra in extras.split(","))


@pytest.mark.slow
def test_container_when_what_it_copies_is_built_then_the_wheel_is_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for word, rest in instructions():
        if word == "COPY" and "--from" not in rest:
            for name in rest.split()[:-1]:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, source], check=True, timeout=300)
    (wheel,) = tmp_path.glob("kernel_hub-*.whl")
    code = "import registry.server, sys; assert sys.argv[1] in registry.server.__file__"
    environment = {"PYTHONPATH": str(wheel), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code, str(wheel)], env=environment, cwd=tmp_path, check=True)
