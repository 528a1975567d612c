"""Compile a kernel from source with `khub build`, a command: the builder is no part of a bare install.

One variant is built, the best that the builder offers for the environment, into `builds/` of the cache under a
digest of source, environment, backend and builder version. It appears whole, and a second call finds it there
without running a command.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from . import errors
from .cache_folder import read, scratch_folder
from .environment import Environment
from .errors import CacheError, IntegrityError, KernelHubError, MissingExtraError, UsageError
from .manifest import INDEX_NAME, BackendInfo, Index, Metadata, parse_index
from .resolver import choose
from .source_files import BUILD_FILE, source_digest
from .store import Store
from .variant import parse_variant
from .verify import VerifiedPackage, verify_package

_EXTRA = "pip install 'kernel-hub[build]'"
# `-m` and `-c` look for modules in the working folder first, so the command gets an empty one.
_KHUB = (sys.executable, "-c", "import sys; from hub_loader.cli import main; sys.exit(main())")
_KEPT_LINES = 20

logger = logging.getLogger("hub_loader")


@dataclass(frozen=True)
class BuiltKernel:
    """A package folder in the cache that holds the one variant built for an environment."""

    package: Path
    variant: str

    def verify(self) -> VerifiedPackage:
        """Prove the variant's files, as those of a downloaded one.

        Raises:
            IntegrityError, InvalidKernelError: they are not what was built.
        """
        indexed = _index(self.package).variants[self.variant]
        cure = f"delete the folder {self.package}, it will be built again"
        return verify_package(self.package / "build" / self.variant, indexed=indexed, cure=cure)


def build_kernel(
    what: str,
    source: Path,
    environment: Environment,
    backend: str | None,
    cache: Path,
    *,
    say: Callable[[str], None] = logger.info,
) -> BuiltKernel:
    """Compile the kernel in the folder `source` for `environment`, unless that is done already.

    Args:
        what: names the kernel in errors.
        source: a folder with build.toml.
        backend: "cpu" or "cuda"; None takes the environment's default.
        cache: the loader's own cache folder.
        say: is told each line of progress.

    Raises:
        MissingExtraError: the builder is not installed; the message says what to install.
        NoMatchingVariantError: nothing that can be built from it fits; the message says why.
        BuildConfigError, ToolchainError, CompileError, AuditError: as `khub build`.
        UsageError: `source` holds no build.toml. CacheError: the cache cannot be written.
    """
    if not (source / BUILD_FILE).is_file():
        raise UsageError(f"{source} holds no {BUILD_FILE}: it is not the source of a kernel")
    if not entry_points(group="khub.commands", name="build"):
        raise MissingExtraError(f"{what}: building from source needs the builder: {_EXTRA}")
    source = source.absolute()
    target = cache / "builds" / _key(source, environment, backend)
    if not (target / INDEX_NAME).is_file():
        with scratch_folder(cache, "build-") as working:
            variant = _choose_cell(what, source, environment, backend, working, say)
            say(f"{what}: building {variant} from {source}")
            package = working / "package"
            arguments = ["build", str(source), "--select", variant, "--out", str(package), "--json"]
            _khub(what, arguments, working, say)
            _install(package, target)
    Store(cache).use_folder(target)
    return built_kernel(target)


def built_kernel(package: Path) -> BuiltKernel:
    """What lies in a folder of `builds/`.

    Raises:
        InvalidKernelError: its index is damaged. CacheError: it cannot be read.
    """
    (variant,) = _index(package).variants
    return BuiltKernel(package, variant)


def stated_sources(variants: Iterable[Metadata]) -> frozenset[str]:
    """The digests of the sources that variants were built from, of those whose metadata states it."""
    sources = ((metadata.provenance or {}).get("sources") for metadata in variants)
    digests = (one.get("sha256") for one in sources if isinstance(one, Mapping))
    return frozenset(digest for digest in digests if isinstance(digest, str))


def check_source(what: str, source: Path, stated: frozenset[str]) -> None:
    """Hold a published source against what the published variants state they were built from.

    Raises:
        IntegrityError: it is something else.
    """
    if source_digest(source) not in stated:
        raise IntegrityError(
            f"{what}: the published source is not what the published variants were built from: do not build it, "
            "tell the publisher"
        )


def _choose_cell(
    what: str,
    source: Path,
    environment: Environment,
    backend: str | None,
    working: Path,
    say: Callable[[str], None],
) -> str:
    """The best of the variants that the builder can make, by the rules for published ones.

    Cells on request come second: they are the same code once more.
    """
    (kernel,) = json.loads(_khub(what, ["matrix", str(source), "--json"], working, say)).values()
    cells: list[dict[str, Any]] = kernel["cells"]
    offered = {cell["variant"]: _backend(cell) for cell in cells if not cell["on_request"]}
    everything = {cell["variant"]: _backend(cell) for cell in cells}
    try:
        return choose(what, environment, offered, backend)
    except errors.NoMatchingVariantError:
        return choose(f"{what}, as far as it can be built,", environment, everything, backend)


def _backend(cell: dict[str, Any]) -> BackendInfo:
    return BackendInfo(parse_variant(cell["variant"]).backend.name, tuple(cell["capabilities"]))


def _key(source: Path, environment: Environment, backend: str | None) -> str:
    parts = (source_digest(source), repr(environment), str(backend), version("kernel-hub"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _index(package: Path) -> Index:
    path = package / INDEX_NAME
    return parse_index(read(path) or b"", origin=str(path))


def _khub(what: str, arguments: Sequence[str], working: Path, say: Callable[[str], None]) -> str:
    """Run a `khub` command; returns its standard output, tells `say` each line of its standard error."""
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    with tempfile.TemporaryFile(dir=working) as output:
        with subprocess.Popen(
            [*_KHUB, *arguments],
            cwd=_empty(working),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    last.append(line.rstrip())
                    say(last[-1])
            except BaseException:  # Ctrl-C: the command is not to go on alone
                process.terminate()
                raise
        if process.returncode != 0:
            raise _error(what, process.returncode, last)
        output.seek(0)
        return output.read().decode()


def _error(what: str, code: int, lines: Sequence[str]) -> KernelHubError:
    """The error that `khub` reported, in its own class."""
    said = [line.removeprefix("khub: ") for line in lines if line.startswith("khub: ")]
    message = said[-1] if said else "\n".join(lines) or "without a word"
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, KernelHubError)]
    kind = next((c for c in classes if c.exit_code == code), KernelHubError)
    if kind is MissingExtraError and _EXTRA not in message:
        message += f"; {_EXTRA}"
    return kind(f"{what} could not be built from source: {message}")


def _empty(working: Path) -> Path:
    folder = working / "empty"
    folder.mkdir(exist_ok=True)
    return folder


def _install(package: Path, target: Path) -> None:
    """Move what was built to its place; of two processes that built the same, the first wins."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        package.rename(target)
    except OSError as error:
        if not (target / INDEX_NAME).is_file():
            raise CacheError(f"cannot write the cache {target.parent}: {error}") from None
