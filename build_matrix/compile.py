"""Compile and link one cell: a ninja file, a log.

Objects and libraries are kept under names that say all of their content (see `objects.py`), so what is there
is never stale and a second run has nothing to do. Paths of the machine are mapped away, the environment is
emptied: equal sources give equal bytes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hub_loader.errors import BuildConfigError, CompileError

from .build_file import BuildFile
from .jobs import Limits, machine_limits
from .matrix import Cell
from .objects import object_key
from .provenance import library_name
from .units import INCLUDE, Toolchain, Unit, units

EXPORTS = "exports.map"
LOG = "build.log"
# Flags that differ between machines and change nothing in what is built.
_MACHINE_FLAGS = re.compile(r"[ ,]-ffile-prefix-map=[^ ,]+")
# How tvm-ffi recognises the functions of a library.
TVM_FFI_EXPORT = "__tvm_ffi_"


@dataclass(frozen=True)
class Compiled:
    """A built library, the log beside it, and how many of its objects were compiled now and were there.

    `commands` are those that made it, with names instead of this machine's paths.
    """

    library: Path
    log: Path
    compiled: int
    reused: int
    commands: tuple[str, ...]


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
    link = _link(cell, tools)
    # The exported symbol carries the id, so the id is part of the library's key.
    key = object_key((*link, kernel_id, *(unit.key for unit in parts)), {}, tools.identity, {})
    folder = store / "libraries" / key
    objects = store / "objects"
    library, log = folder / library_name(kernel_id, cell.variant), folder / LOG
    commands = command_lines(build, parts, link, tools)
    if library.is_file():
        return Compiled(library, log, 0, len(parts), commands)
    folder.mkdir(parents=True, exist_ok=True)
    objects.mkdir(exist_ok=True)
    missing = list({unit.key: unit for unit in parts if not _object(objects, unit).is_file()}.values())
    limits = limits or machine_limits()
    entries = f"{TVM_FFI_EXPORT}*" if cell.variant.framework.name == "tvm-ffi" else f"PyInit_{kernel_id}"
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=store) as work:
        (Path(work) / EXPORTS).write_text(f"{{ global: {entries}; local: *; }};\n")
        text = ninja_file(parts, missing, objects, library, link, tools, limits)
        (Path(work) / "build.ninja").write_text(text)
        command = [sys.executable, "-m", "ninja", "-C", work, "-j", str(limits.jobs), "-k", "0"]
        output = subprocess.PIPE
        done = subprocess.run(command, env=_environment(tools), stdout=output, stderr=subprocess.STDOUT)
    log.write_bytes(done.stdout)
    if done.returncode:
        lines = done.stdout.decode(errors="replace").splitlines()
        first = next((line for line in lines if _is_error(line)), "see the log")
        raise CompileError(f"{build.general.name} {cell}: {first.strip()} (whole log: {log})", log)
    return Compiled(library, log, len(missing), len(parts) - len(missing), commands)


def command_lines(
    build: BuildFile, parts: Sequence[Unit], link: Sequence[str | Path], tools: Toolchain
) -> tuple[str, ...]:
    """The commands that make the library, with names instead of this machine's paths."""
    names = {build.folder: build.general.name, INCLUDE: "include", tools.system_stubs: "stubs"}
    for name, folders in tools.includes.items():
        names |= {folder: f"{name}-{number}" for number, folder in enumerate(folders)}
    names |= {path.parent: "framework" for path in tools.framework}
    if tools.cuda is not None:
        names |= {
            tools.cuda.root: "cuda",
            tools.cuda.lib: "cuda/lib",
        }  # another architecture's lies elsewhere
    system = [tools.compiler.file(name) for name in ("libc_nonshared.a", "libstdc++.a")]
    names |= {path: path.name for path in (tools.compiler.path, *system) if path is not None}
    lines = [" ".join(map(str, (*unit.command, "-c", unit.source))) for unit in parts]
    lines.append(" ".join(map(str, link)))
    for path in sorted(names, key=lambda path: len(path.parts), reverse=True):
        lines = [line.replace(str(path), names[path]) for line in lines]
    return tuple(_MACHINE_FLAGS.sub("", line) for line in lines)


def ninja_file(
    parts: Sequence[Unit],
    missing: Sequence[Unit],
    objects: Path,
    library: Path,
    link: Sequence[str | Path],
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
    lines += _rule("link", [*link, "-o", library.name], library.name, f"link {library.name}")
    inputs = [tools.system_stubs / "compat.o", *dict.fromkeys(_object(objects, unit) for unit in parts)]
    lines += [f"build {_escape(library)}: link {' '.join(map(_escape, inputs))}", ""]
    return "\n".join(lines)


def _object(objects: Path, unit: Unit) -> Path:
    return objects / f"{unit.key}.o"


def _is_error(line: str) -> bool:
    """Whether a line of the log is a complaint; command lines, which begin with a quote, are none."""
    return not line.startswith("'") and ("error" in line or "undefined reference" in line)


def _link(cell: Cell, tools: Toolchain) -> list[str | Path]:
    """Only what the target offers is visible: no default libraries, every symbol resolved against stubs.

    Exact builds may use torch's C++ interface, of which there is no list: there the linker lets undefined
    symbols pass, and the audit accepts those of torch's namespaces alone. So too for one interpreter's
    builds: CPython's symbols are in the interpreter, and the audit accepts no other.
    """
    stubs = [
        tools.system_stubs / name for name in ("libstdc++.so.6", "libm.so.6", "libc.so.6", "libgcc_s.so.1")
    ]
    loader = sorted(tools.system_stubs.glob("ld-linux*.so.*[0-9]"))
    # What the oldest libstdc++ lacks, such as std::to_chars of floating point, comes from the compiler's own
    # archive. The stubs stand before it, so that nothing they have is copied, and after it for its own needs.
    newer = tools.compiler.file("libstdc++.a")
    nonshared = tools.compiler.file("libc_nonshared.a")
    command: list[str | Path] = [tools.compiler.path, "-shared", "-nodefaultlibs", "$in"]
    # Nothing but the module's entry is visible, so that two kernels in a process share no symbol.
    command += [f"-Wl,--version-script={EXPORTS}"]
    exact = cell.variant.framework.name == "torch"
    symbols = "undefs" if exact or cell.variant.python is not None else "defs"
    command += [f"-Wl,-z,{symbols},-z,noexecstack,-z,relro,-z,now,--build-id=sha1,-s"]
    if cell.backfill is not None:
        command += ["-Wl,--gc-sections"]  # of the backfill what the binding calls
    command += ["-Wl,--no-as-needed" if exact else "-Wl,--as-needed", *tools.framework, "-Wl,--as-needed"]
    if tools.cuda is not None:
        command += [tools.cuda.lib / tools.cuda.runtime]
    if newer is not None:
        command += [*stubs, newer]
    return [*command, *stubs, *loader, *([nonshared] if nonshared else []), "-lgcc"]


def _environment(tools: Toolchain) -> dict[str, str]:
    path = os.pathsep.join([str(tools.compiler.path.parent), "/usr/bin", "/bin"])
    return {"PATH": path, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0", "TMPDIR": tempfile.gettempdir()}


def _shell(words: Sequence[str | Path]) -> str:
    """Words for ninja's shell; `$in` and `$out` stay ninja's own."""
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
