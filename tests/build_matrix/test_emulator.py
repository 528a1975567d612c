"""The emulated interpreter: another architecture's CPython on this machine."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import packaging
import pytest

import hub_loader
from build_matrix.matrix import EmulatorRelease, read_matrix
from build_matrix.toolchain.cache import ToolchainCache
from build_matrix.toolchain.emulator import emulated_runner, fetch_emulator
from build_matrix.toolchain.host import HostCompiler, find_compiler
from hub_loader.errors import ToolchainError

COMPILER = HostCompiler(Path("g++"), "12.2.0", "aarch64-linux-gnu")
PROBE = """
import json, sys
sys.path[:1] = sys.argv[1:]
from hub_loader.environment import detect_environment
here = detect_environment()
print(json.dumps([here.arch, here.python, open("/proc/cpuinfo").read().count("processor")]))
"""


@pytest.mark.slow
@pytest.mark.skipif(find_compiler().arch != "x86_64", reason="the emulator is a program for x86_64")
def test_emulated_runner_is_seen_by_the_loader_as_a_machine_of_its_architecture_with_one_processor() -> None:
    runner = emulated_runner(ToolchainCache(), read_matrix().emulator["aarch64"], COMPILER)
    paths = [Path(module.__path__[0]).parent for module in (hub_loader, packaging)]
    command = [*runner.command, "-S", "-s", "-B", "-c", PROBE, *paths]
    done = subprocess.run(command, env={"LC_ALL": "C.UTF-8"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["aarch64", "cp311", 1]
    loader = runner.library("ld-linux-aarch64.so.1")
    assert loader is not None
    assert loader.is_relative_to(ToolchainCache().root)


@pytest.mark.slow
def test_fetch_emulator_of_packages_without_qemu_says_what_to_correct(tmp_path: Path) -> None:
    system = read_matrix().emulator["aarch64"].system
    zlib = replace(system, packages=tuple(name for name in system.packages if name.startswith("zlib1g=")))
    with pytest.raises(ToolchainError, match=r"zlib1g=\S+ holds no qemu-aarch64-static: correct matrix.toml"):
        fetch_emulator(ToolchainCache(tmp_path), EmulatorRelease("aarch64", (3, 11), zlib, system))
