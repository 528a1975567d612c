"""Compile and link one cell: command lines, a ninja file, a log.

Objects and libraries are kept under names that say all of their content (see `objects.py`), so what is there
is never stale and a second run has nothing to do. Paths of the machine are mapped away, the environment is
emptied: equal sources give equal bytes.
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
from .jobs import Limits, machine_limits
from .matrix import Cell
from .objects import object_key, reachable
from .provenance import source_files
from .toolchain.cuda import CudaToolkit
from .toolchain.host import HostCompiler
from .toolchain.stubs import target_define
from .toolchain.torch_sdk import TorchSdk

INCLUDE = Path(__file__).with_name("include")
EXPORTS = "exports.map"
LOG = "build.log"
_CXX_SUFFIXES = (".cpp", ".cc", ".cxx", ".c")
# Flags that make the compiler read files which no source names.
_READING_FLAGS = ("-I", "-i", "@", "--include", "--imacros", "-Wp,", "-Xpreprocessor")
_HEADER_SUFFIXES = (".h", ".hpp", ".hh", ".cuh", ".inc")


@dataclass(frozen=True)
class Toolchain:
    """Everything one cell is compiled with. `cuda` is None for a CPU cell."""

    compiler: HostCompiler
    sdk: TorchSdk
    system_stubs: Path
    torch_stubs: Path
    cuda: CudaToolkit | None


@dataclass(frozen=True)
class Source:
    """One translation unit: its file, include folders and flags beyond the cell's own."""

    path: Path
    include: tuple[Path, ...]
    flags: tuple[str, ...]
    needs_torch: bool


@dataclass(frozen=True)
class Unit:
    """A translation unit with its whole command line; `key` names its object."""

    source: Path
    command: tuple[str | Path, ...]
    key: str
    heavy: bool


@dataclass(frozen=True)
class Compiled:
    """A built library, the log beside it, and how many of its objects were compiled now and were there."""

    library: Path
    log: Path
    compiled: int
    reused: int


def compile_cell(
    build: BuildFile,
    cell: Cell,
    kernel_id: str,
    tools: Toolchain,
    store: Path,
    limits: Limits | None = None,
) -> Compiled:
    """Build the cell's shared library, keeping it and its objects in the folder `store`.

    `limits` bounds how many compilers run at once; the whole machine is used without it.

    Raises:
        CompileError: the compiler or the linker refused; the message names the log and its first error.
        BuildConfigError: a source of a kind that the cell's backend cannot compile.
    """
    parts = units(build, cell, kernel_id, tools)
    # The exported symbol carries the id, so the id is part of the library's key.
    link_inputs = (*_link(tools), kernel_id, *(unit.key for unit in parts))
    folder = store / "libraries" / object_key(link_inputs, {}, _identity(tools), {})
    objects = store / "objects"
    library, log = folder / f"{kernel_id}.abi3.so", folder / LOG
    if library.is_file():
        return Compiled(library, log, 0, len(parts))
    folder.mkdir(parents=True, exist_ok=True)
    objects.mkdir(exist_ok=True)
    missing = list({unit.key: unit for unit in parts if not _object(objects, unit).is_file()}.values())
    limits = limits or machine_limits()
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=store) as work:
        (Path(work) / EXPORTS).write_text(f"{{ global: PyInit_{kernel_id}; local: *; }};\n")
        text = ninja_file(parts, missing, objects, library, tools, limits)
        (Path(work) / "build.ninja").write_text(text)
        command = [sys.executable, "-m", "ninja", "-C", work, "-j", str(limits.jobs), "-k", "0"]
        output = subprocess.PIPE
        done = subprocess.run(command, env=_environment(tools), stdout=output, stderr=subprocess.STDOUT)
    log.write_bytes(done.stdout)
    if done.returncode:
        lines = done.stdout.decode(errors="replace").splitlines()
        first = next((line for line in lines if _is_error(line)), "see the log")
        raise CompileError(f"{build.general.name} {cell}: {first.strip()} (whole log: {log})", log)
    return Compiled(library, log, len(missing), len(parts) - len(missing))


def units(build: BuildFile, cell: Cell, kernel_id: str, tools: Toolchain) -> list[Unit]:
    """The cell's translation units with their command lines and keys.

    Only a unit that mentions TORCH_EXTENSION_NAME is given the id, and only one that needs torch its headers:
    the others have the same object in every variant that agrees on the rest.
    """
    everything = list(source_files(build.folder))
    ours = {path: path.read_bytes() for path in sorted(INCLUDE.glob("*.h"))}
    places = {build.folder: "kernel", INCLUDE: "include"}
    found = []
    for source in sources(build, cell):
        files = reachable(source.path, source.include, everything)
        if any(flag.startswith(_READING_FLAGS) for flag in source.flags):
            files |= {path: path.read_bytes() for path in everything}
        include = (*source.include, INCLUDE, *(tools.sdk.include_dirs if source.needs_torch else ()))
        flags: list[str | Path] = [f"-I{path}" for path in include]
        if any(b"TORCH_EXTENSION_NAME" in data for data in files.values()):
            flags.append(f"-DTORCH_EXTENSION_NAME={kernel_id}")
        if source.needs_torch:
            flags += target_define(cell.stable_abi)
        flags += source.flags
        command = (*_compiler(build, cell, tools, source), *flags)
        key = object_key([*command, source.path], {**files, **ours}, _identity(tools), places)
        heavy = source.needs_torch and cell.stable_abi is None
        found.append(Unit(source.path, command, key, heavy))
    return found


def ninja_file(
    parts: Sequence[Unit],
    missing: Sequence[Unit],
    objects: Path,
    library: Path,
    tools: Toolchain,
    limits: Limits,
) -> str:
    """The ninja file that compiles the `missing` ones of `parts` into `objects` and links all to `library`.

    Outputs are made under another name and renamed when whole.
    """
    lines = ["pool heavy", f"  depth = {limits.heavy}"]
    gpu = sum(unit.source.suffix == ".cu" for unit in missing)
    for number, unit in enumerate(missing):
        command = list(unit.command)
        if unit.source.suffix == ".cu":
            # Not in the unit's own command: the number of threads changes no byte of the object.
            command += ["--threads", str(max(1, limits.jobs // gpu))]
        made = _object(objects, unit).name
        rule = f"compile{number}"
        lines += _rule(rule, [*command, "-c", "$in", "-o", made], made, f"compile {unit.source.name}")
        lines += ["  pool = heavy"] if unit.heavy else []
        lines += [f"build {_escape(_object(objects, unit))}: {rule} {_escape(unit.source)}"]
    lines += _rule("link", [*_link(tools), "-o", library.name], library.name, f"link {library.name}")
    inputs = [tools.system_stubs / "compat.o", *dict.fromkeys(_object(objects, unit) for unit in parts)]
    lines += [f"build {_escape(library)}: link {' '.join(map(_escape, inputs))}", ""]
    return "\n".join(lines)


def _compiler(build: BuildFile, cell: Cell, tools: Toolchain, source: Source) -> list[str | Path]:
    """The compiler and the flags that every unit of its kind is compiled with."""
    abi = 0 if cell.variant.framework.cxx11_abi is False else 1
    gpu = ["-DCUDA_KERNEL", "-DUSE_CUDA"] if cell.cuda else ["-DCPU_KERNEL"]
    common = ["-std=c++17", "-O3", "-DNDEBUG", f"-D_GLIBCXX_USE_CXX11_ABI={abi}", *gpu]
    host = ["-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-fno-gnu-unique"]
    host += _prefix_maps(build, tools, source)
    if source.path.suffix != ".cu":
        baseline = ["-include", str(INCLUDE / "baseline.h")]
        return [tools.compiler.path, *common, *host, *baseline, "-Wall"]
    assert tools.cuda is not None  # `sources` refuses CUDA files of other backends
    nvcc: list[str | Path] = [tools.cuda.nvcc, "-ccbin", tools.compiler.path, *common]
    nvcc += [f"-I{tools.cuda.include}", *_gencode(cell.capabilities), "-Xcompiler", ",".join(host)]
    # Without it nvcc derives symbol names from the process id, and no two builds are equal.
    return [*nvcc, "--objdir-as-tempdir"]


def _identity(tools: Toolchain) -> tuple[str, ...]:
    """Which compiler this is, and on which system's headers: the stubs' name is a digest of its libraries."""
    return tools.compiler.version, tools.compiler.target, tools.system_stubs.name


def _object(objects: Path, unit: Unit) -> Path:
    return objects / f"{unit.key}.o"


def _is_error(line: str) -> bool:
    """Whether a line of the log is a complaint; command lines, which begin with a quote, are none."""
    return not line.startswith("'") and ("error" in line or "undefined reference" in line)


def sources(build: BuildFile, cell: Cell) -> list[Source]:
    """The cell's translation units: the binding and the components of its backend.

    Raises:
        BuildConfigError: nothing to compile, or a file that the backend cannot compile.
    """
    backend = cell.variant.backend.name
    framework = Component("torch", backend, build.framework.src, ("torch",), build.framework.include)
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
            units.append(Source(build.folder / name, include, extra, "torch" in component.depends))
    if not units:
        raise BuildConfigError(f"{build.folder}: build.toml names no source for {backend}; add [kernel.NAME]")
    return units


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
    command: list[str | Path] = [tools.compiler.path, "-shared", "-nodefaultlibs", "$in"]
    # Nothing but the module's entry is visible, so that two kernels in a process share no symbol.
    command += [f"-Wl,--version-script={EXPORTS}"]
    command += ["-Wl,-z,defs,-z,noexecstack,-z,relro,-z,now,--as-needed,--build-id=sha1,-s"]
    command += [tools.torch_stubs / "libtorch_cpu.so", tools.torch_stubs / "libtorch_cuda.so"]
    if tools.cuda is not None:
        command += [tools.cuda.lib / tools.cuda.runtime]
    return [*command, *stubs, *loader, *([nonshared] if nonshared else []), "-lgcc"]


def _prefix_maps(build: BuildFile, tools: Toolchain, source: Source) -> list[str]:
    places = {build.folder: build.general.name, INCLUDE: "include"}
    if source.needs_torch:
        places[tools.sdk.root] = "sdk"
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


def _escape(path: str | Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _rule(name: str, command: Sequence[str | Path], made: str, description: str) -> list[str]:
    """A rule whose command makes the file `made`; its bytes are on disk before it gets its final name."""
    shell = f"{_shell(command)} && sync {_shell([made])} && mv -f {_shell([made])} $out"
    return [f"rule {name}", f"  command = {shell}", f"  description = {description}"]
