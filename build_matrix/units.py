"""The translation units of one cell: what is compiled, with which command line, under which key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hub_loader.errors import BuildConfigError
from hub_loader.source_files import source_files

from .build_file import BuildFile, Component
from .capabilities import component_capabilities, is_assembled, of_version
from .matrix import Cell, CudaRelease, minor_of
from .objects import object_key, reachable
from .toolchain.cuda import CudaToolkit
from .toolchain.host import HostCompiler
from .toolchain.stubs import target_define

INCLUDE = Path(__file__).with_name("include")
# What older torch releases lack of the stable ABI; compiled against such a release's own headers.
BACKFILL = INCLUDE / "backfill.cpp"
OLDER_TORCH = "older-torch"
_CXX_SUFFIXES = (".cpp", ".cc", ".cxx", ".c")
# Flags that make the compiler read files which no source names.
_READING_FLAGS = ("-I", "-i", "@", "--include", "--imacros", "-Wp,", "-Xpreprocessor")
_HEADER_SUFFIXES = (".h", ".hpp", ".hh", ".cuh", ".inc")
# What sources call the build's id; TORCH_EXTENSION_NAME with torch.
_EXTENSION_NAMES = {"tvm-ffi": "TVM_FFI_EXTENSION_NAME", "none": "EXTENSION_NAME"}


@dataclass(frozen=True)
class Toolchain:
    """Everything one cell is compiled with. `cuda` is None for a CPU cell.

    `includes` gives, for each name that a source may depend on, its include folders; `framework` are the
    libraries that the binding is linked against.
    """

    compiler: HostCompiler
    includes: Mapping[str, tuple[Path, ...]]
    system_stubs: Path
    framework: tuple[Path, ...]
    cuda: CudaToolkit | None

    @property
    def identity(self) -> tuple[str, ...]:
        """Which compiler this is, on which system's headers: the stubs' name is a digest of its libraries."""
        return self.compiler.version, self.compiler.target, self.system_stubs.name


@dataclass(frozen=True)
class Source:
    """One translation unit: its file, include folders and flags beyond the cell's own, what it depends on.

    `capabilities` are the CUDA compute capabilities it is compiled for.
    """

    path: Path
    include: tuple[Path, ...]
    flags: tuple[str, ...]
    depends: tuple[str, ...]
    capabilities: tuple[str, ...]

    @property
    def needs_torch(self) -> bool:
        return "torch" in self.depends


@dataclass(frozen=True)
class Unit:
    """A translation unit with its whole command line; `key` names its object. `heavy`: over a GB to compile."""

    source: Path
    command: tuple[str | Path, ...]
    key: str
    heavy: bool


def sources(build: BuildFile, cell: Cell) -> list[Source]:
    """The cell's sources: the binding and the components of its backend.

    Raises:
        BuildConfigError: nothing to compile, or a file that the backend cannot compile.
    """
    backend = cell.variant.backend.name
    kind = build.framework.kind
    binding = Component(kind, backend, build.framework.src, (kind,), build.framework.include)
    components = [c for c in build.components if c.backend == backend]
    if cell.cuda is not None:
        components = of_version(components, cell.cuda.version)
    found = []
    for component in (binding, *components):
        flags = build.framework.cxx_flags if component is binding else component.cxx_flags
        include = tuple(build.folder / path for path in (*component.include, "csrc", "."))
        depends = (*component.depends, "tvm-ffi") if kind == "tvm-ffi" else component.depends
        archs = () if cell.cuda is None else component_capabilities(component, cell.cuda)
        for name in component.src:
            suffix = Path(name).suffix
            if suffix in _HEADER_SUFFIXES:
                continue
            if suffix not in _CXX_SUFFIXES and not (suffix == ".cu" and backend == "cuda"):
                where = build.folder / name
                raise BuildConfigError(f"{where}: a {backend} variant cannot compile {suffix!r} files")
            extra = component.cuda_flags if suffix == ".cu" else flags
            found.append(Source(build.folder / name, include, extra, depends, archs))
    if not found:
        raise BuildConfigError(f"{build.folder}: build.toml names no source for {backend}; add [kernel.NAME]")
    if cell.backfill is not None:
        found.append(Source(BACKFILL, (), ("-ffunction-sections",), (OLDER_TORCH,), ()))
    return found


def units(build: BuildFile, cell: Cell, kernel_id: str, tools: Toolchain) -> list[Unit]:
    """The cell's translation units with their command lines and keys.

    Only a unit that mentions the extension's name is given the id, and only one that needs torch its headers:
    the others have the same object in every variant that agrees on the rest.
    """
    everything = list(source_files(build.folder))
    ours = {path: path.read_bytes() for path in sorted(INCLUDE.glob("*.h"))}
    places = {build.folder: "kernel", INCLUDE: "include"}
    name = _EXTENSION_NAMES.get(cell.variant.framework.name, "TORCH_EXTENSION_NAME")
    mention = re.compile(rf"\b{name}\b".encode())  # the whole word: the shortest name ends the others
    found = []
    for source in sources(build, cell):
        files = reachable(source.path, source.include, everything)
        if any(flag.startswith(_READING_FLAGS) for flag in source.flags):
            files |= {path: path.read_bytes() for path in everything}
        include = [*source.include, INCLUDE]
        include += [path for library in source.depends for path in tools.includes.get(library, ())]
        flags: list[str | Path] = [f"-I{path}" for path in include]
        if any(mention.search(data) for data in files.values()):
            flags.append(f"-D{name}={kernel_id}")
        if source.needs_torch:
            flags += target_define(cell.stable_abi)
        flags += source.flags
        command = (*_compiler(build, cell, tools, source), *flags)
        # CPython's headers are the machine's own: an update changes them in their place.
        headers = [cell.python_release or ""] if "pybind11" in source.depends else []
        key = object_key([*command, source.path], {**files, **ours}, [*tools.identity, *headers], places)
        found.append(Unit(source.path, command, key, source.needs_torch and cell.stable_abi is None))
    return found


def _compiler(build: BuildFile, cell: Cell, tools: Toolchain, source: Source) -> list[str | Path]:
    """The compiler and the flags that every unit of its kind is compiled with."""
    # Beside the backfill nothing of such a cell meets torch's C++: it is compiled as for the stable ABI.
    older = OLDER_TORCH in source.depends
    exact = cell.variant.framework.name == "torch" and (older or cell.backfill is None)
    abi = 0 if exact and cell.variant.framework.cxx11_abi is False else 1
    standard = _standard(cell.backfill if older else cell.torch_release)
    common = [f"-std={standard}", "-O3", "-DNDEBUG", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    common += ["-DCUDA_KERNEL", "-DUSE_CUDA"] if cell.cuda else ["-DCPU_KERNEL"]
    if source.needs_torch and exact:
        # Kernels that bring their own module definition include Python.h; theirs too must fit every CPython.
        common.append("-DPy_LIMITED_API=0x030a0000")
    host = ["-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-fno-gnu-unique"]
    host += _prefix_maps(build, tools, source)
    baseline = ["-include", str(INCLUDE / "baseline.h")]
    if source.path.suffix != ".cu":
        return [tools.compiler.path, *common, *host, *baseline, "-Wall"]
    assert tools.cuda is not None and cell.cuda is not None  # `sources` refuses CUDA files of other backends
    nvcc: list[str | Path] = [tools.cuda.nvcc, "-ccbin", tools.compiler.path, *common, *baseline]
    nvcc += ["-DENABLE_FP8"] if cell.torch_release is not None else []
    nvcc += [f"-I{tools.cuda.include}", *gencode(source.capabilities, cell.cuda), "--expt-relaxed-constexpr"]
    # The names of anonymous namespaces hold a digest of the source's path: nvcc's own option for it comes first, the
    # last one counts, and this one is equal in every checkout.
    path = f"{build.general.name}/{source.path.relative_to(build.folder).as_posix()}"
    nvcc += ["-Xcudafe", "--orig_src_path_name", "-Xcudafe", path]
    # Without the last nvcc derives symbol names from the process id, and no two builds are equal.
    return [*nvcc, "-Xcompiler", ",".join(host), "--objdir-as-tempdir"]


def _standard(torch_release: str | None) -> str:
    """C++20 with the headers of torch 2.12 and later, as the Hub's builder does; C++17 otherwise."""
    return "c++20" if torch_release is not None and minor_of(torch_release) >= (2, 12) else "c++17"


def gencode(capabilities: Sequence[str], compiler: CudaRelease) -> list[str]:
    """nvcc's flags: "9.0a" compiles for exactly that, "12.0+PTX" also embeds code for newer devices.

    What is newer than the compiler is asked of the toolkit's `fatbinary`, and the PTX it is made of of nvcc. Pure.
    """
    flags = []
    assembled = [capability for capability in capabilities if is_assembled(capability, compiler)]
    origin = compiler.assembler.ptx if compiler.assembler is not None and assembled else None
    native = [capability for capability in capabilities if capability not in assembled]
    for capability in native:
        number = capability.removesuffix("+PTX").replace(".", "")
        ptx = capability.endswith("+PTX") or capability == origin
        codes = f"sm_{number},compute_{number}" if ptx else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code=[{codes}]")
    if origin is not None:
        number = origin.replace(".", "")
        if not {origin, f"{origin}+PTX"} & set(native):
            flags.append(f"-gencode=arch=compute_{number},code=[compute_{number}]")
        extra = [f"--from-ptx={number}", *(f"--assemble={c.replace('.', '')}" for c in assembled)]
        extra += ["--keep-ptx"] if f"{origin}+PTX" in native else []
        flags += [f"-Xfatbin={option}" for option in extra]
    return flags


def _prefix_maps(build: BuildFile, tools: Toolchain, source: Source) -> list[str]:
    """No path of this machine in the object: each folder that the source can see gets a name."""
    # The compiler's own headers: those of a cross compiler lie in the cache, not under /usr.
    places = {build.folder: build.general.name, INCLUDE: "include", tools.compiler.path.parents[1]: "gcc"}
    for name in dict.fromkeys(source.depends):
        folders = tools.includes.get(name, ())
        places |= {folder: f"{name}-{number}" for number, folder in enumerate(folders)}
    if tools.cuda is not None:
        places[tools.cuda.root] = "cuda"
    return [f"-ffile-prefix-map={path}={name}" for path, name in places.items()]
