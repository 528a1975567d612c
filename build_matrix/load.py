"""The load gates: a built variant, loaded by the real loader in the torch versions its name promises.

Each runs in a process of its own, with a hollow torch, and under qemu where the variant is for another
architecture. CUDA's code is loaded with every symbol resolved, and its operators are registered but not called.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hub_loader
from hub_loader.variant import Variant

from .gates import Verdict
from .matrix import EmulatorRelease, Matrix, TorchRelease
from .toolchain.cache import ToolchainCache
from .toolchain.cross import compiler_for
from .toolchain.cuda import cuda_toolkit
from .toolchain.debian import missing_tool
from .toolchain.emulator import emulated_runner
from .toolchain.hollow import HollowTorch, hollow_torch
from .toolchain.host import HostCompiler
from .toolchain.interpreters import find_interpreter
from .toolchain.runner import Runner, native_runner

CHECK_FILE = Path("tests") / "load_check.py"
_CHILD = Path(__file__).with_name("load_child.py")
# The machine that qemu and the cross compilers are compiled for.
_EMULATES = "x86_64"


@dataclass(frozen=True)
class Loader:
    """What load gates need; everything heavy is fetched on first use."""

    cache: ToolchainCache
    compiler: HostCompiler
    matrix: Matrix

    def verdicts(self, folder: Path, variant: Variant, check: Path | None) -> Iterator[Verdict]:
        """Load the package folder of `variant`, one verdict per torch; `check` runs an operator where one can run.

        Raises:
            ToolchainError: a torch to load into, or what emulates its machine, cannot be had.
        """
        here = self.compiler.arch
        emulators = self.matrix.emulator.values() if here == _EMULATES else ()
        torches, reason = promised(variant, self.matrix.load, here, emulators)
        if not torches:
            yield Verdict("load", None, f"not run: {reason}")
        for torch in torches:
            gate = f"load in torch {torch.release}"
            runner, reason = self._runner(variant, torch)
            if runner is None:
                yield Verdict(gate, None, f"not run: {reason}")
                continue
            command = load_command(runner, hollow_torch(self.cache, runner, torch.release), folder, variant)
            passed, sentence = run(runner, [*command, *self._additions(variant, check)])
            yield Verdict(gate + runner.note, passed, sentence)

    def _runner(self, variant: Variant, torch: TorchRelease) -> tuple[Runner | None, str]:
        """What a variant is run in with `torch`, or None and the reason."""
        arch = _arch(variant, self.compiler.arch)
        if arch != self.compiler.arch:
            if tool := missing_tool():
                return None, f"no {tool} here to unpack the Debian packages of {arch}'s emulator"
            compiler = compiler_for(self.cache, self.compiler, self.matrix, arch)
            return emulated_runner(self.cache, self.matrix.emulator[arch], compiler), ""
        (_, oldest), (_, newest) = torch.pythons
        python = find_interpreter(oldest, newest)
        if python is None:
            return None, f"no Python 3.{oldest} to 3.{newest} on PATH"
        return native_runner(self.compiler, python), ""

    def _additions(self, variant: Variant, check: Path | None) -> list[str | Path]:
        """CUDA's runtime before the variant, or the check after it."""
        if variant.backend.name == "cuda" and variant.backend.version is not None:
            release = self.matrix.cuda[variant.backend.version]
            toolkit = cuda_toolkit(self.cache, release, _arch(variant, self.compiler.arch))
            return ["--preload", toolkit.lib / toolkit.runtime]
        return [] if check is None else ["--check", check]


def promised(
    variant: Variant, torches: Sequence[TorchRelease], here: str, emulators: Collection[EmulatorRelease] = ()
) -> tuple[list[TorchRelease], str]:
    """The oldest and the newest of `torches` that the name promises to run in, or none and the reason. Pure.

    What is not for this machine's architecture, `here`, runs in the one Python that its emulator has.
    """
    framework, arch = variant.framework, _arch(variant, here)
    if framework.name not in ("torch", "torch-stable-abi"):
        return [], "only what binds to torch's libraries is loaded by this gate"
    emulator = next((emulator for emulator in emulators if emulator.arch == arch), None)
    if arch != here and emulator is None:
        return [], f"needs a machine of architecture {arch}"
    fitting = [torch for torch in torches if _fits(variant, torch, arch)]
    if arch != here and emulator is not None:
        fitting = [torch for torch in fitting if torch.pythons[0] <= emulator.python <= torch.pythons[1]]
    return (fitting[:1] + fitting[1:][-1:]), f"matrix.toml lists no torch for {variant} under [load]"


def _arch(variant: Variant, here: str) -> str:
    return here if variant.platform is None else variant.platform.arch


def _fits(variant: Variant, torch: TorchRelease, arch: str) -> bool:
    version, wheel = variant.framework.version, torch.wheel(arch)
    if version is None or wheel is None:
        return False
    if torch.minor < version if variant.framework.name != "torch" else torch.minor != version:
        return False
    if variant.backend.name != "cuda":
        return True
    wanted, there = variant.backend.version, wheel.cuda
    return wanted is not None and there is not None and wanted[0] == there[0] and wanted <= there


def load_command(runner: Runner, hollow: HollowTorch, folder: Path, variant: Variant) -> list[str | Path]:
    """The command that loads the package folder of `variant` in a runner. Pure."""
    command: list[str | Path] = [*runner.command, "-S", "-s", "-B", _CHILD, folder]
    command += ["--backend", variant.backend.name]
    for path in (hollow.root, hollow.dependencies, Path(hub_loader.__file__).parent.parent):
        command += ["--path", path]
    return command


def run(runner: Runner, command: Sequence[str | Path]) -> tuple[bool, str]:
    """Run a load child in `runner`: whether it proved the variant, and a sentence."""
    kept = {name: os.environ[name] for name in runner.kept if name in os.environ}
    environment = {**kept, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=runner.seconds
        )
    except subprocess.TimeoutExpired:
        return False, f"it was not loaded after {runner.seconds} s"
    return answer(done)


def answer(done: subprocess.CompletedProcess[str]) -> tuple[bool, str]:
    """Whether a finished load child proved the variant, and a sentence: what was proven, or what went wrong."""
    if done.returncode < 0:
        return False, f"loading it ended the process with {signal.Signals(-done.returncode).name}"
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return False, f"the interpreter failed: {' '.join(done.stderr.split())[-300:]}"
    return "proven" in answer, answer.get("proven") or answer["error"]
