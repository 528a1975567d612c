"""Building a kernel's CPU variants with khub, against installing torch and building with torch.utils.cpp_extension.

Both compile the same sources of kernels_src/paged-attention with the same optimisation flags, in the same run:

- khub: `khub build --select CELL` for each cell; first with an empty toolchain cache (headers fetched by ranges, link
  stubs made), then compiling again with the toolchains there, then with nothing changed.
- cpp_extension: a fresh venv, torch fetched and installed, `cpp_extension.load` into an empty folder, then again
  with nothing changed.

khub also audits, packages and hashes; cpp_extension also imports torch and loads the result. Compiles alternate between
the two, so that a neighbour's load meets both. Bytes are those of the files fetched, without an index's own pages.
Results go to benchmarks/results/build.json: medians with minimum and maximum, of wall time and of processor time, which
a busy machine distorts less.

    python benchmarks/build.py [--repeat N] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _report import ROOT, commit, machine, spread

KERNEL = ROOT / "kernels_src" / "paged-attention"
RESULTS = ROOT / "benchmarks" / "results" / "build.json"
CELLS = (
    "torch-stable-abi210-cpu-x86_64-linux",
    "torch25-cxx98-cpu-x86_64-linux",
    "torch213-cxx11-cpu-x86_64-linux",
)
TORCH = "2.13.0"

LOAD = """
import sys
from torch.utils import cpp_extension
kernel, include, folder = sys.argv[1:]
flags = ["-O3", "-std=c++17", "-DNDEBUG", "-DCPU_KERNEL", "-ffp-contract=fast", "-fvisibility=hidden"]
cpp_extension.load(
    name="paged_attention_jit",
    sources=[f"{kernel}/torch-ext/torch_binding.cpp", f"{kernel}/csrc/cpu/attend.cpp", f"{kernel}/csrc/cpu/cache.cpp"],
    extra_cflags=[*flags, "-DTORCH_TARGET_VERSION=0x020a000000000000"],
    extra_include_paths=[include, kernel],
    build_directory=folder,
    is_python_module=False,
)
import torch
torch.ops.paged_attention_jit.attend
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5, help="compiles and repeats of each (5)")
    parser.add_argument("--quick", action="store_true", help="one of each")
    args = parser.parse_args()
    repeat = 1 if args.quick else args.repeat
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="khub-bench-") as folder:
        work = Path(folder)
        cells = {cell: Khub(work, cell) for cell in CELLS}
        results: dict[str, Any] = {cell: khub.first() for cell, khub in cells.items()}
        peer = CppExtension(work)
        results["cpp_extension"] = peer.install()
        compiles: dict[str, list[Run]] = {name: [] for name in results}
        repeats: dict[str, list[Run]] = {name: [] for name in results}
        for _ in range(repeat):
            for name, builder in {**cells, "cpp_extension": peer}.items():
                builder.forget()
                compiles[name].append(builder.build())
                repeats[name].append(builder.build())
        for name, result in results.items():
            for key, runs in (("compile", compiles[name]), ("unchanged", repeats[name])):
                result[f"{key}_s"] = spread([run.wall for run in runs])
                result[f"{key}_cpu_s"] = spread([run.cpu for run in runs])
    report = {
        "machine": machine() | {"load_before": load, "load_after": os.getloadavg()},
        "versions": versions(),
        **commit(),
        "kernel": KERNEL.name,
        "results": results,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(table(results))
    print(
        f"load average {load[0]:.1f} before, {os.getloadavg()[0]:.1f} after on {os.cpu_count()} cores; {RESULTS}"
    )
    return 0


@dataclass(frozen=True)
class Run:
    """One command: wall and processor seconds (its children's included), and what it printed."""

    wall: float
    cpu: float
    output: str


class Khub:
    """`khub build` of one cell, with a toolchain cache of its own."""

    def __init__(self, work: Path, cell: str) -> None:
        self.cell = cell
        self.cache = work / f"toolchains-{cell}"
        self.out = work / f"package-{cell}"
        self.fetched = 0

    def first(self) -> dict[str, Any]:
        """Build with nothing there: seconds to fetch and build, bytes fetched, bytes kept."""
        run = self.build()
        return {
            "first_s": run.wall,
            "first_cpu_s": run.cpu,
            "fetched_bytes": self.fetched,
            "kept_bytes": size(self.cache),
        }

    def forget(self) -> None:
        """Drop what was compiled, keep the toolchains."""
        for name in ("objects", "libraries"):
            shutil.rmtree(self.cache / name)
        shutil.rmtree(self.out)

    def build(self) -> Run:
        command = [sys.executable, "-m", "hub_loader", "build", KERNEL, "--select", self.cell]
        run = timed(
            [*command, "--out", self.out, "--json"], KHUB_TOOLCHAINS=str(self.cache), PYTHONPATH=str(ROOT)
        )
        self.fetched = json.loads(run.output)["downloaded"]["bytes"]
        return run


class CppExtension:
    """torch in a venv of its own, and torch.utils.cpp_extension."""

    def __init__(self, work: Path) -> None:
        self.venv = work / "venv"
        self.wheels = work / "wheels"
        self.folder = work / "jit"

    def install(self) -> dict[str, Any]:
        """Fetch and install torch and what cpp_extension needs, then build once."""
        needs = [f"torch=={TORCH}", "setuptools", "ninja"]
        pip = [self.venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
        venv = timed([sys.executable, "-m", "venv", self.venv])
        fetch = timed([*pip, "download", "--dest", self.wheels, *needs])
        install = timed([*pip, "install", "--no-index", "--find-links", self.wheels, *needs])
        self.folder.mkdir()
        runs = (venv, fetch, install, self.build())
        return {
            "first_s": sum(run.wall for run in runs),
            "first_cpu_s": sum(run.cpu for run in runs),
            "fetch_s": fetch.wall,
            "install_s": install.wall,
            "fetched_bytes": size(self.wheels),
            "kept_bytes": size(self.venv),
        }

    def forget(self) -> None:
        """Drop what was compiled, keep the installation."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def build(self) -> Run:
        path = f"{self.venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
        include = ROOT / "build_matrix" / "include"
        command = [self.venv / "bin" / "python", "-c", LOAD, KERNEL, include, self.folder]
        return timed(command, PATH=path)


def timed(command: list[Any], **environment: str) -> Run:
    """Run a command to its end."""
    before, start = cpu_seconds(), time.perf_counter()
    words = list(map(str, command))
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True)
    wall = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{words[0]} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return Run(wall, cpu_seconds() - before, done.stdout)


def cpu_seconds() -> float:
    """Processor time of every child that has ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def size(folder: Path) -> int:
    """Bytes of the files in `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def versions() -> dict[str, str]:
    gcc = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=True)
    return {
        "python": platform.python_version(),
        "kernel-hub": version("kernel-hub"),
        "ninja": version("ninja"),
        "g++": gcc.stdout.strip(),
        "torch": TORCH,
    }


def table(results: dict[str, Any]) -> str:
    """Wall seconds, and processor seconds in parentheses."""
    headings = ("first", "fetched", "kept", "compile", "unchanged")
    lines = [f"{'':<38}" + "".join(f"{heading:>18}" for heading in headings)]
    for name, result in results.items():
        cells = [f"{result['first_s']:.1f} s ({result['first_cpu_s']:.1f})"]
        cells += [f"{result[key] / 1e6:.0f} MB" for key in ("fetched_bytes", "kept_bytes")]
        for key in ("compile", "unchanged"):
            cells.append(f"{result[f'{key}_s']['median']:.1f} s ({result[f'{key}_cpu_s']['median']:.1f})")
        lines.append(f"{name:<38}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
