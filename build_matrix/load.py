"""The load gates: a built variant, loaded by the real loader in the torch versions its name promises.

Each runs in a process of its own, with a hollow torch: code that this machine cannot run, such as CUDA's, is
loaded with every symbol resolved, and its operators are registered but not called.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hub_loader
from hub_loader.variant import Variant

from .gates import Verdict
from .matrix import LoadTorch, Matrix
from .toolchain.cache import ToolchainCache
from .toolchain.cuda import cuda_toolkit
from .toolchain.hollow import HollowTorch, hollow_torch
from .toolchain.host import HostCompiler
from .toolchain.interpreters import Interpreter, find_interpreter

CHECK_FILE = Path("tests") / "load_check.py"
_CHILD = Path(__file__).with_name("load_child.py")
_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Loader:
    """What load gates need; everything heavy is fetched on first use."""

    cache: ToolchainCache
    compiler: HostCompiler
    matrix: Matrix

    def verdicts(self, folder: Path, variant: Variant, check: Path | None) -> Iterator[Verdict]:
        """Load the package folder of `variant`, one verdict per torch; `check` runs an operator where one can run.

        Raises:
            ToolchainError: a torch to load into cannot be had.
        """
        torches, reason = promised(variant, self.matrix.load, self.compiler.arch)
        if not torches:
            yield Verdict("load", None, f"not run: {reason}")
        for torch in torches:
            gate = f"load in torch {torch.release}"
            oldest, newest = torch.oldest_python[1], torch.newest_python[1]
            python = find_interpreter(oldest, newest)
            if python is None:
                yield Verdict(gate, None, f"not run: no Python 3.{oldest} to 3.{newest} on PATH")
                continue
            hollow = hollow_torch(self.cache, self.compiler, torch.release, python)
            passed, sentence = self._load(folder, variant, check, hollow, python)
            yield Verdict(gate, passed, sentence)

    def _load(
        self, folder: Path, variant: Variant, check: Path | None, hollow: HollowTorch, python: Interpreter
    ) -> tuple[bool, str]:
        hub = Path(hub_loader.__file__).parent.parent
        command: list[str | Path] = [python.path, "-S", "-s", "-B", _CHILD, folder]
        command += ["--backend", variant.backend.name]
        for path in (hollow.root, hollow.dependencies, hub):
            command += ["--path", path]
        if variant.backend.name == "cuda" and variant.backend.version is not None:
            toolkit = cuda_toolkit(self.cache, self.matrix.cuda[variant.backend.version], self.compiler.arch)
            command += ["--preload", toolkit.lib / toolkit.runtime]
        elif check is not None:
            command += ["--check", check]
        try:
            done = subprocess.run(
                command, env=_environment(), capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
            )
        except subprocess.TimeoutExpired:
            return False, f"it was not loaded after {_TIMEOUT_SECONDS} s"
        return answer(done)


def promised(variant: Variant, torches: Sequence[LoadTorch], arch: str) -> tuple[list[LoadTorch], str]:
    """The oldest and the newest of `torches` that the name promises to run in, or none and the reason. Pure."""
    framework = variant.framework
    if framework.name not in ("torch", "torch-stable-abi"):
        return [], "only what binds to torch's libraries is loaded by this gate"
    if variant.platform is not None and variant.platform.arch != arch:
        return [], f"needs a machine of architecture {variant.platform.arch}"
    fitting = [torch for torch in torches if _fits(variant, torch)]
    return (fitting[:1] + fitting[1:][-1:]), f"matrix.toml lists no torch for {variant} under [[load]]"


def _fits(variant: Variant, torch: LoadTorch) -> bool:
    version, backend = variant.framework.version, variant.backend
    if version is None or (
        torch.minor < version if variant.framework.name != "torch" else torch.minor != version
    ):
        return False
    cuda = backend.version
    return backend.name != "cuda" or (cuda is not None and cuda[0] == torch.cuda[0] and cuda <= torch.cuda)


def answer(done: subprocess.CompletedProcess[str]) -> tuple[bool, str]:
    """Whether a finished load child proved the variant, and a sentence: what was proven, or what went wrong."""
    if done.returncode < 0:
        return False, f"loading it ended the process with {signal.Signals(-done.returncode).name}"
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return False, f"the interpreter failed: {' '.join(done.stderr.split())[-300:]}"
    return "proven" in answer, answer.get("proven") or answer["error"]


def _environment() -> dict[str, str]:
    """What an interpreter needs to start, and no setting that changes what is imported."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
