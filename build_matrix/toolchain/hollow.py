"""A hollow torch: enough of a released torch to load a kernel into and run an operator on the CPU.

A torch wheel for CUDA is up to 900 MB, and needs gigabytes of NVIDIA's libraries. Its CUDA kernels, headers and
tools are left out (about 140 MB remain), and every library that is missing is replaced by a stub that
defines the symbols the remaining ones ask for. Calling one of those ends the process, so this is for tests only.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from tqdm import tqdm

from hub_loader.errors import ToolchainError

from .cache import ToolchainCache
from .pip import locate_wheel
from .ranged import open_source, read_members, safe_path
from .runner import Runner
from .wheels import unpack_wheels

_FORMAT = 2
# What `import torch` imports. Pure Python, or with a pure fallback.
_DEPENDENCIES = (
    "filelock==3.16.1",
    "fsspec==2024.10.0",
    "jinja2==3.1.6",
    "mpmath==1.3.0",
    "networkx==3.4.2",
    "packaging==24.2",
    "sympy==1.13.1",
    "typing-extensions==4.15.0",
)
_PACKAGES = ("torch", "torch.libs", "torchgen", "functorch")
_LEFT_OUT = re.compile(
    r"torch/(include|bin/(?!torch_shm_manager)|share|test)/.*|torch/lib/libtorch_(cuda\w*|nvshmem)\.so|.*\.(pyi|a|lib|cuh?|cpp|h)"
)
_LIBRARIES = ("torch/lib/*.so*", "torch.libs/*.so*", "torch/*.so")
# Declares the C functions of libtorch_cuda that a kernel may call.
_SHIM_HEADERS = re.compile(
    r"torch/include/torch/csrc/(inductor/aoti_torch/c|inductor/aoti_torch/generated|stable/c)/\w+\.h"
)
_CUDA_FUNCTION = re.compile(r"\b((?:aoti_)?torch_\w*cuda\w*)\s*\(")
# Replaces operators of CUDA by Python ones while torch is imported; there are none to replace.
_OVERRIDES = "torch/_native/ops/__init__.py"
_CUDA_LIBRARY = "libtorch_cuda.so"
_CONSTRUCTOR = re.compile(r"_ZN.*C[12]E")
_STUB_SOURCE = """
static long memory[512];
__attribute__((used)) static void *stub(void) { return memory; }
extern void *class_type[] __asm__("_ZTVN10__cxxabiv117__class_type_infoE");
struct type_info { void *vtable; const char *name; };
struct table { void *offset, *type; void *(*functions[64])(void); };
static struct type_info unknown = {class_type + 2, "unknown"};
static struct table table = {0, &unknown, {[0 ... 63] = stub}};
__attribute__((used)) static void *construct(void **object) { *object = table.functions; return object; }
"""

Symbol = tuple[str, "str | None"]
"""A symbol's name and its version, None without."""


@dataclass(frozen=True)
class HollowTorch:
    """A hollow torch for one interpreter: the folders to put on its path."""

    release: str
    root: Path
    dependencies: Path


@dataclass(frozen=True)
class Links:
    """What one library asks the dynamic linker for.

    `undefined` are (symbol, its version or None, the library the version is of or None).
    """

    needed: tuple[str, ...]
    undefined: tuple[tuple[str, str | None, str | None], ...]
    defined: frozenset[str]


def hollow_torch(cache: ToolchainCache, runner: Runner, release: str) -> HollowTorch:
    """The hollow torch `release` (e.g. "2.10.0") for the Python and architecture of `runner`, fetched on first use.

    Raises:
        ToolchainError: no such wheel, or the index cannot be reached or read by ranges.
    """

    def fetch_torch(folder: Path) -> None:
        platform = f"manylinux_2_28_{runner.arch}"
        wheel = locate_wheel(f"torch=={release}", python=f"3.{runner.minor}", platform=platform)
        declared: set[str] = set()
        bar = tqdm(desc=f"hollow torch {release}", unit="B", unit_scale=True, disable=None, leave=False)
        with open_source(wheel.url, cache.traffic.count("hollow torch")) as source, bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            for name, content in read_members(source, _is_wanted, progress=progress):
                if name == _OVERRIDES:
                    content = b""
                if _SHIM_HEADERS.fullmatch(name):
                    declared |= set(_CUDA_FUNCTION.findall(content.decode()))
                    continue
                path = folder / safe_path(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        if not (folder / "torch" / "__init__.py").is_file():
            raise ToolchainError(f"{wheel.url} holds no torch: use another index")
        libraries = [path for place in _LIBRARIES for path in folder.glob(place)]
        write_stubs(runner, folder / "torch" / "lib", libraries, declared)

    name = f"hollow-torch-{release}-cp3{runner.minor}-{runner.arch}"
    return HollowTorch(
        release,
        cache.provide(name, f"{name} {_FORMAT}", fetch_torch),
        torch_dependencies(cache),
    )


def torch_dependencies(cache: ToolchainCache) -> Path:
    """The folder of the packages that `import torch` imports.

    Raises:
        ToolchainError: one is not to be had or not as locked.
    """

    def fetch(folder: Path) -> None:
        count = cache.traffic.count("hollow torch")
        unpack_wheels(folder, _DEPENDENCIES, "x86_64", cache.downloads, cache.pins, count)

    return cache.provide("hollow-torch-dependencies", f"{_FORMAT} {' '.join(_DEPENDENCIES)}", fetch)


def _is_wanted(name: str) -> bool:
    if _SHIM_HEADERS.fullmatch(name):
        return True
    return name.split("/")[0] in _PACKAGES and not _LEFT_OUT.fullmatch(name)


def write_stubs(runner: Runner, folder: Path, libraries: Iterable[Path], declared: Iterable[str]) -> None:
    """Write into `folder` every library that `libraries` need and that neither they nor the runner's system offer.

    libtorch_cuda.so also gets the functions `declared` in torch's headers.
    """
    links = {path.name: read_links(path) for path in libraries}
    for name in {name for link in links.values() for name in link.needed} - links.keys():
        if (system := runner.library(name)) is not None:
            links[name] = read_links(system)
    for name, symbols in missing_libraries(links, declared).items():
        _write_stub(runner, folder / name, symbols)


def missing_libraries(links: Mapping[str, Links], extra: Iterable[str] = ()) -> dict[str, list[Symbol]]:
    """The stubs that `links`, a closed set of libraries but for what is missing, needs: symbols by library name.

    A symbol with a version goes into the library that its version is of. One without, which none of the
    libraries defines, goes into libtorch_cuda.so with `extra`; those of Python are the interpreter's.
    """
    missing = {name for link in links.values() for name in link.needed if name not in links}
    symbols: dict[str, set[Symbol]] = {name: set() for name in missing | {_CUDA_LIBRARY}}
    defined = frozenset().union(*(link.defined for link in links.values()))
    for link in links.values():
        for symbol, version, library in link.undefined:
            if library in missing:
                symbols[library].add((symbol, version))
            elif version is None and symbol not in defined and not symbol.startswith(("Py", "_Py")):
                symbols[_CUDA_LIBRARY].add((symbol, None))
    symbols[_CUDA_LIBRARY] |= {(symbol, None) for symbol in extra if symbol not in defined}
    return {name: sorted(wanted, key=str) for name, wanted in sorted(symbols.items())}


def read_links(path: Path) -> Links:
    """Read what a shared library needs, leaves undefined and defines."""
    with path.open("rb") as file:
        section: Callable[[str], Any] = ELFFile(file).get_section_by_name  # typed too widely by pyelftools
        needed = tuple(tag.needed for tag in section(".dynamic").iter_tags("DT_NEEDED"))
        versym, verneed = section(".gnu.version"), section(".gnu.version_r")
        versions: dict[Any, tuple[str, str]] = {}
        if isinstance(verneed, GNUVerNeedSection):
            for need, auxes in verneed.iter_versions():
                versions |= {aux["vna_other"]: (str(aux.name), str(need.name)) for aux in auxes}
        undefined, defined = [], []
        for index, symbol in enumerate(section(".dynsym").iter_symbols()):
            if symbol["st_shndx"] != "SHN_UNDEF":
                defined.append(symbol.name)
            elif symbol.name and symbol["st_info"]["bind"] != "STB_WEAK":
                node = None if versym is None else versym.get_symbol(index)["ndx"]
                undefined.append((symbol.name, *versions.get(node, (None, None))))
    return Links(needed, tuple(undefined), frozenset(defined))


def _write_stub(runner: Runner, path: Path, symbols: Iterable[Symbol]) -> None:
    """Write a library that defines `symbols`, so that the others load and initialise themselves.

    Every function returns zeroed memory: who wants a reference gets one that may be written to, who wants a
    status gets one that is not success. Type information has its class's name, virtual tables hold functions,
    and a constructor makes an object with such a table.
    """
    source, versions = [_STUB_SOURCE], set()
    for number, (symbol, version) in enumerate(symbols):
        if symbol.startswith("_ZTI"):
            source.append(
                f'struct type_info t{number} __asm__("{symbol}") = {{class_type + 2, "{symbol[4:]}"}};'
            )
            continue
        if symbol.startswith("_ZTV"):
            source.append(
                f'struct table v{number} __asm__("{symbol}") = {{0, &unknown, {{[0 ... 63] = stub}}}};'
            )
            continue
        label = symbol if version is None else f"__stub_{number}"
        code = "construct" if _CONSTRUCTOR.match(symbol) else "stub"
        lines = [f".globl {label}", f".type {label}, %function", f".set {label}, {code}"]
        if version is not None:
            versions.add(version)
            lines.append(f".symver {label}, {symbol}@@@{version}")
        source += [f'__asm__("{line}");' for line in lines]
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch) / "versions.map"
        script.write_text("".join(f"{version} {{ }};\n" for version in sorted(versions)))
        command: list[str | Path] = [runner.compiler.path, "-x", "c", "-", "-shared", "-nodefaultlibs"]
        command += ["-lstdc++", "-fPIC", "-o", path]
        command += [f"-Wl,-soname,{path.name}", *([f"-Wl,--version-script={script}"] if versions else [])]
        done = subprocess.run(command, input="\n".join(source), capture_output=True, text=True)
    if done.returncode:
        raise ToolchainError(
            f"{runner.compiler.path} cannot make a stub of {path.name}: {done.stderr.strip()[-500:]}"
        )
