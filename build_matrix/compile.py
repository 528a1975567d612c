"""Compile and link one cell: command lines, a ninja file, a log.

Objects lie in a folder named after the kernel's id, a digest of everything that goes in, so what is
there is never stale and a second run has nothing to do. Paths of the machine are mapped away, the
environment is emptied: equal sources give equal bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hub_loader.errors import BuildConfigError, CompileError

from .build_toml import BuildFile, Component
from .matrix import Cell
from .provenance import library_name
from .toolchain.cuda import CudaToolkit
from .toolchain.host import HostCompiler
from .toolchain.python import PythonSdk
from .toolchain.stubs import target_define
from .toolchain.torch_sdk import TorchSdk

INCLUDE = Path(__file__).with_name("include")
EXPORTS = "exports.map"
_CXX_SUFFIXES = (".cpp", ".cc", ".cxx", ".c")
_HEADER_SUFFIXES = (".h", ".hpp", ".hh", ".cuh", ".inc")


@dataclass(frozen=True)
class Toolchain:
    """Everything one cell is compiled with. `cuda` is None for a CPU cell, `torch_stubs` without torch."""

    compiler: HostCompiler
    sdk: TorchSdk | PythonSdk
    system_stubs: Path
    torch_stubs: Path | None = None
    cuda: CudaToolkit | None = None


@dataclass(frozen=True)
class Source:
    """One translation unit: its file, include folders and flags beyond the cell's own."""

    path: Path
    include: tuple[Path, ...]
    flags: tuple[str, ...]
    needs_sdk: bool


def compile_cell(build: BuildFile, cell: Cell, kernel_id: str, tools: Toolchain, folder: Path) -> Path:
    """Build the cell's shared library in `folder`; returns its path.

    Raises:
        CompileError: the compiler or the linker refused; the message names the log and its first error.
        BuildConfigError: a source of a kind that the cell's backend cannot compile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / library_name(kernel_id, cell.variant)
    _write_if_changed(folder / EXPORTS, f"{{ global: PyInit_{kernel_id}; local: *; }};\n")
    _write_if_changed(folder / "build.ninja", ninja_file(build, cell, kernel_id, tools, library.name))
    command = [sys.executable, "-m", "ninja", "-C", str(folder)]
    done = subprocess.run(command, env=_environment(tools), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log = folder / "build.log"
    log.write_bytes(done.stdout)
    if done.returncode:
        text = done.stdout.decode(errors="replace").splitlines()
        first = next(
            (line for line in text if "error" in line or "undefined reference" in line), "see the log"
        )
        raise CompileError(f"{build.general.name} {cell}: {first.strip()} (whole log: {log})")
    return library


def ninja_file(build: BuildFile, cell: Cell, kernel_id: str, tools: Toolchain, output: str) -> str:
    """The ninja file that compiles every source of the cell and links `output`."""
    common = ["-std=c++17", "-O3", "-DNDEBUG", *_defines(cell, kernel_id)]
    host = ["-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-fno-gnu-unique"]
    host += _prefix_maps(build, tools)
    baseline = ["-include", str(INCLUDE / "baseline.h")]
    cxx: list[str | Path] = [tools.compiler.path, *common, *host, *baseline, "-Wall"]
    lines = _rule("cxx", [*cxx, "$flags", "-c", "$in", "-o", "$out"])
    if tools.cuda is not None:
        threads = str(min(len(cell.capabilities), os.cpu_count() or 1))
        nvcc: list[str | Path] = [
            tools.cuda.nvcc,
            "-ccbin",
            tools.compiler.path,
            *common,
            f"-I{tools.cuda.include}",
        ]
        nvcc += [*_gencode(cell.capabilities), "--threads", threads, "-Xcompiler", ",".join(host)]
        # Without it nvcc derives symbol names from the process id, and no two builds are equal.
        nvcc += ["--objdir-as-tempdir", "$flags", "-c", "$in", "-o", "$out"]
        lines += _rule("nvcc", nvcc)
    lines += _rule("link", _link(tools))
    objects = [str(tools.system_stubs / "compat.o")]
    for number, source in enumerate(sources(build, cell)):
        include = (*source.include, INCLUDE, *(tools.sdk.include_dirs if source.needs_sdk else ()))
        flags = _shell([*(f"-I{path}" for path in include), *source.flags])
        objects.append(f"{number}-{source.path.stem}.o")
        rule = "nvcc" if source.path.suffix == ".cu" else "cxx"
        lines += [f"build {_escape(objects[-1])}: {rule} {_escape(str(source.path))}", f"  flags = {flags}"]
    lines += [f"build {_escape(output)}: link {' '.join(_escape(name) for name in objects)}", ""]
    return "\n".join(lines)


def sources(build: BuildFile, cell: Cell) -> list[Source]:
    """The cell's translation units: the binding and the components of its backend.

    Raises:
        BuildConfigError: nothing to compile, or a file that the backend cannot compile.
    """
    backend = cell.variant.backend.name
    framework = Component("binding", backend, build.framework.src, (), build.framework.include)
    units = []
    for component in (framework, *(c for c in build.components if c.backend == backend)):
        flags = build.framework.cxx_flags if component is framework else component.cxx_flags
        include = tuple(build.folder / path for path in (*component.include, "."))
        for name in component.src:
            suffix = Path(name).suffix
            if suffix in _HEADER_SUFFIXES:
                continue
            if suffix not in _CXX_SUFFIXES and not (suffix == ".cu" and backend == "cuda"):
                raise BuildConfigError(
                    f"{build.folder / name}: a {backend} variant cannot compile {suffix!r} files"
                )
            extra = component.cuda_flags if suffix == ".cu" else flags
            needs_sdk = component is framework or "torch" in component.depends
            units.append(Source(build.folder / name, include, extra, needs_sdk))
    if not units:
        raise BuildConfigError(f"{build.folder}: build.toml names no source for {backend}; add [kernel.NAME]")
    return units


def _defines(cell: Cell, kernel_id: str) -> list[str]:
    if cell.torch_release is None:
        return [f"-DEXTENSION_NAME={kernel_id}", "-DCPU_KERNEL"]
    abi = 0 if cell.variant.framework.cxx11_abi is False else 1
    gpu = ["-DCUDA_KERNEL", "-DUSE_CUDA"] if cell.cuda else ["-DCPU_KERNEL"]
    return [
        f"-DTORCH_EXTENSION_NAME={kernel_id}",
        f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
        *target_define(cell.stable_abi),
        *gpu,
    ]


def _gencode(capabilities: Sequence[str]) -> list[str]:
    """nvcc's flags: "9.0a" compiles for exactly that, "12.0+PTX" also embeds code for newer devices."""
    flags = []
    for capability in capabilities:
        number = capability.removesuffix("+PTX").replace(".", "")
        codes = f"sm_{number},compute_{number}" if capability.endswith("+PTX") else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code=[{codes}]")
    return flags


def _link(tools: Toolchain) -> list[str | Path]:
    """Only what the target offers is visible: no default libraries, every symbol resolved against stubs."""
    stubs = [
        tools.system_stubs / name for name in ("libstdc++.so.6", "libm.so.6", "libc.so.6", "libgcc_s.so.1")
    ]
    loader = sorted(tools.system_stubs.glob("ld-linux*.so.*[0-9]"))
    nonshared = tools.compiler.file("libc_nonshared.a")
    command: list[str | Path] = [tools.compiler.path, "-shared", "-nodefaultlibs", "$in", "-o", "$out"]
    # Nothing but the module's entry is visible, so that two kernels in a process share no symbol.
    command += [f"-Wl,--version-script={EXPORTS}"]
    command += ["-Wl,-z,noexecstack,-z,relro,-z,now,--as-needed,--build-id=sha1,-s"]
    if tools.torch_stubs is not None:
        command += [
            "-Wl,-z,defs",
            tools.torch_stubs / "libtorch_cpu.so",
            tools.torch_stubs / "libtorch_cuda.so",
        ]
    # Without torch, CPython's symbols stay open, as the interpreter has them; the audit refuses any other.
    if tools.cuda is not None:
        command += [tools.cuda.lib / tools.cuda.runtime]
    return [*command, *stubs, *loader, *([nonshared] if nonshared else []), "-lgcc"]


def _prefix_maps(build: BuildFile, tools: Toolchain) -> list[str]:
    places = {build.folder: build.general.name, INCLUDE: "include"}
    places |= {path: f"sdk{number}" for number, path in enumerate(tools.sdk.include_dirs)}
    if tools.cuda is not None:
        places[tools.cuda.root] = "cuda"
    return [f"-ffile-prefix-map={path}={name}" for path, name in places.items()]


def _environment(tools: Toolchain) -> dict[str, str]:
    path = os.pathsep.join([str(tools.compiler.path.parent), "/usr/bin", "/bin"])
    return {"PATH": path, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0", "TMPDIR": tempfile.gettempdir()}


def _shell(words: Sequence[str | Path]) -> str:
    """Words for ninja's shell; `$flags`, `$in` and `$out` stay ninja's own."""
    return " ".join(
        str(word) if str(word).startswith("$") else "'" + _dollar(str(word)) + "'" for word in words
    )


def _dollar(word: str) -> str:
    if "'" in word or "\n" in word:
        raise BuildConfigError(f"a path or flag with a quote cannot be built: {word!r}; rename it")
    return word.replace("$", "$$")


def _escape(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _rule(name: str, command: Sequence[str | Path]) -> list[str]:
    return [f"rule {name}", f"  command = {_shell(command)}", f"  description = {name} $out"]


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
