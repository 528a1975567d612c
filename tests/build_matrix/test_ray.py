"""Building on a Ray cluster: what a task asks for, what is believed of its result, and a machine that dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from khub_process import khub_command, khub_environment

from build_matrix.build_toml import read_build_file
from build_matrix.compile import LOG
from build_matrix.executors import executor_named
from build_matrix.job import Job
from build_matrix.matrix import read_matrix
from build_matrix.plan import plan, select
from build_matrix.provenance import Provenance
from build_matrix.toolchain.cache import ToolchainCache
from hub_loader.errors import CompileError, IntegrityError, MissingExtraError
from hub_loader.manifest import parse_index
from hub_loader.source_files import source_files

ray = pytest.importorskip("ray", reason="pip install 'kernel-hub[ray]'")

from build_matrix.ray_executor import build_from_bytes, check, receive, requirements  # noqa: E402

TINY = Path(__file__).with_name("tiny-relu")
STABLE = "torch-stable-abi210-cpu-x86_64-linux"
ORIGIN = Provenance(None, False)


def job(kernel: Path, out: Path) -> Job:
    build, matrix = read_build_file(kernel), read_matrix()
    cells = select(plan(build, matrix)[0], [STABLE])
    return Job(build, cells, matrix, out, ToolchainCache(out / "cache"), ORIGIN)


def as_bytes(kernel: Path) -> dict[str, bytes]:
    return {path.relative_to(kernel).as_posix(): path.read_bytes() for path in source_files(kernel)}


def test_executor_named_ray_without_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "build_matrix.ray_executor")
    with pytest.raises(MissingExtraError, match=r"kernel-hub\[ray\]"):
        executor_named("ray")


def test_requirements_are_those_labels_of_a_cell_that_some_machine_declares() -> None:
    cell = job(TINY, Path("out")).cells[0]
    assert requirements(cell, {"CPU": 8.0}) == {}
    declared = {"khub-cpu": 2.0, "khub-cuda": 2.0, "khub-x86_64": 4.0}
    assert requirements(cell, declared) == {"khub-cpu": 1.0, "khub-x86_64": 1.0}


def test_a_result_of_these_sources_becomes_a_variant_and_no_other_does(tmp_path: Path) -> None:
    asked = job(TINY, tmp_path)
    remote = build_from_bytes(as_bytes(TINY), asked.cells[0], asked.matrix, ORIGIN)
    outcome = receive(asked, remote)
    assert outcome.error is None
    assert outcome.folder == tmp_path / "build" / STABLE
    assert {p.name: p.read_bytes() for p in outcome.folder.iterdir() if p.is_file()} == {
        name: data for name, data in remote.files.items() if "/" not in name
    }
    assert outcome.log is not None
    assert outcome.log.read_bytes() == remote.log

    tampered = {**remote.files, "__init__.py": b"import os"}
    refused = receive(asked, replace(remote, files=tampered))
    assert isinstance(refused.error, IntegrityError)
    assert refused.folder is None
    with pytest.raises(IntegrityError, match="same kernel-hub"):
        check(remote.files, "_tiny_relu_cpu_0000000000", asked.cells[0])


def test_a_failed_task_leaves_its_log_here(tmp_path: Path) -> None:
    kernel = Path(shutil.copytree(TINY, tmp_path / "kernel"))
    (kernel / "csrc" / "relu.cpp").write_text("this is not C++\n")
    asked = job(kernel, tmp_path)
    outcome = receive(asked, build_from_bytes(as_bytes(kernel), asked.cells[0], asked.matrix, ORIGIN))
    assert isinstance(outcome.error, CompileError)
    assert outcome.log is not None
    assert outcome.log.name != LOG
    assert str(outcome.log) in str(outcome.error)
    assert "this is not C++" in outcome.log.read_text()


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that builds nothing; a dead node is noticed within seconds."""
    from ray.cluster_utils import Cluster

    quick = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    }
    head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={**head, "_system_config": quick})
    yield made
    made.shutdown()


@pytest.mark.heavy
def test_build_on_a_cluster_survives_a_machine_that_is_killed_in_the_middle(
    cluster: Any, tmp_path: Path
) -> None:
    def add_node(compiler: Path) -> Any:
        environment = {"CXX": str(compiler), "PYTHONPATH": khub_environment()["PYTHONPATH"]}
        return cluster.add_node(num_cpus=1, object_store_memory=80 << 20, env_vars=environment)

    def compiler(name: str, before: str) -> Path:
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\ncase "$*" in *relu.cpp*) {before};; esac\nexec g++ "$@"\n')
        path.chmod(0o755)
        return path

    reached = tmp_path / "reached"
    endless = add_node(
        compiler("endless", f"echo $$ > {reached}.tmp; mv {reached}.tmp {reached}; exec sleep 600")
    )
    out = tmp_path / "package"
    command = khub_command(
        "build", TINY, "--select", "*stable*-cpu-*", "--out", out, "--executor", "ray", "--json"
    )
    environment = khub_environment() | {"RAY_ADDRESS": cluster.address}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            while not reached.exists():
                assert process.poll() is None, "the build ended before any compiler ran"
                time.sleep(0.1)
            add_node(compiler("working", f"touch {tmp_path / 'taken-over'}"))
            cluster.remove_node(endless, allow_graceful=False)
            printed, _ = process.communicate(timeout=240)
        finally:
            process.kill()
            if reached.exists():
                os.kill(int(reached.read_text()), signal.SIGKILL)
    assert process.returncode == 0, printed
    assert (tmp_path / "taken-over").exists()
    assert [cell["error"] for cell in json.loads(printed)["cells"]] == [None, None]
    index = parse_index((out / "index.json").read_bytes(), origin="index.json")
    assert len(index.variants) == 2
