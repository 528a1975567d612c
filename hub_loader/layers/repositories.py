"""Where a layer comes from: a hub, a folder, or a hub through a lock file.

Nothing is fetched before `load`. All are hashable values. A mapping takes any object with a `load` like
theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from .. import get_kernel, get_local_kernel, get_locked_kernel
from ..errors import LayerError, UsageError
from ..locked import caller_lock
from ..lockfile import LockFile
from .marks import function_layer

if TYPE_CHECKING:
    from torch import nn


class Repository(Protocol):
    """What a mapping maps to."""

    def load(self) -> type[nn.Module]:
        """The layer's class, of which the forward is taken."""
        ...


@dataclass(frozen=True)
class _HubKernel:
    """A kernel on the hub. Neither `revision` nor `version`: the newest version.

    Raises:
        UsageError: `revision` and `version` are both given.
    """

    repo_id: str
    revision: str | None = field(default=None, kw_only=True)
    version: int | None = field(default=None, kw_only=True)
    trust_remote_code: bool | Sequence[str] | None = field(default=None, kw_only=True)
    user_agent: str | dict[str, str] | None = field(default=None, kw_only=True, compare=False)

    def __post_init__(self) -> None:
        if self.revision is not None and self.version is not None:
            raise UsageError(
                f"{self.repo_id}: version={self.version} and revision={self.revision!r} are both given: "
                "pass one of them"
            )
        _freeze_trust(self)

    def _kernel(self, backend: str | None) -> ModuleType:
        options = _given(trust_remote_code=self.trust_remote_code, user_agent=self.user_agent)
        return get_kernel(
            self.repo_id, revision=self.revision, version=self.version, backend=backend, **options
        )

    def _where(self) -> str:
        pinned = _given(version=self.version, revision=self.revision)
        return f"`{self.repo_id}`" + "".join(f" ({key} {value})" for key, value in pinned.items())


@dataclass(frozen=True)
class _LocalKernel:
    repo_path: str | Path

    def _kernel(self, backend: str | None) -> ModuleType:
        return get_local_kernel(Path(self.repo_path), backend=backend)

    def _where(self) -> str:
        return f"`{self.repo_path}`"


@dataclass(frozen=True)
class _LockedKernel:
    """A kernel as a lock file pins it; without `lockfile`, the one of the installed package that makes this.

    Whoever calls `kernelize` later may be another package.
    """

    repo_id: str
    lockfile: str | Path | LockFile | None = field(default=None, kw_only=True)
    trust_remote_code: bool | Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _freeze_trust(self)
        if self.lockfile is None:
            object.__setattr__(self, "lockfile", caller_lock())

    def _kernel(self) -> ModuleType:
        options = _given(trust_remote_code=self.trust_remote_code, lockfile=self.lockfile)
        return get_locked_kernel(self.repo_id, **options)

    def _where(self) -> str:
        return f"`{self.repo_id}` (locked)"


@dataclass(frozen=True)
class LayerRepository(_HubKernel):
    """The layer `layer_name` of a kernel on the hub; other arguments as for `get_kernel`."""

    layer_name: str = field(kw_only=True)

    def load(self, backend: str | None = None) -> type[nn.Module]:
        """Raises: LayerError, and what `get_kernel` raises."""
        return _layer(self._kernel(backend), self.layer_name, self)

    def __str__(self) -> str:
        return f"{self._where()}, layer `{self.layer_name}`"


@dataclass(frozen=True)
class LocalLayerRepository(_LocalKernel):
    """The layer `layer_name` of a kernel in a folder."""

    layer_name: str = field(kw_only=True)

    def load(self, backend: str | None = None) -> type[nn.Module]:
        """Raises: LayerError, and what `get_local_kernel` raises."""
        return _layer(self._kernel(backend), self.layer_name, self)

    def __str__(self) -> str:
        return f"{self._where()}, layer `{self.layer_name}`"


@dataclass(frozen=True)
class LockedLayerRepository(_LockedKernel):
    """The layer `layer_name` of a kernel that a lock file pins."""

    layer_name: str = field(kw_only=True)

    def load(self) -> type[nn.Module]:
        """Raises: LayerError, and what `get_locked_kernel` raises."""
        return _layer(self._kernel(), self.layer_name, self)

    def __str__(self) -> str:
        return f"{self._where()}, layer `{self.layer_name}`"


@dataclass(frozen=True)
class FuncRepository(_HubKernel):
    """The function `func_name` of a kernel on the hub, as a layer whose forward calls it."""

    func_name: str = field(kw_only=True)

    def load(self, backend: str | None = None) -> type[nn.Module]:
        """Raises: LayerError, and what `get_kernel` raises."""
        return _function(self._kernel(backend), self.func_name, self)

    def __str__(self) -> str:
        return f"{self._where()}, function `{self.func_name}`"


@dataclass(frozen=True)
class LocalFuncRepository(_LocalKernel):
    """The function `func_name` of a kernel in a folder, as a layer whose forward calls it."""

    func_name: str = field(kw_only=True)

    def load(self, backend: str | None = None) -> type[nn.Module]:
        """Raises: LayerError, and what `get_local_kernel` raises."""
        return _function(self._kernel(backend), self.func_name, self)

    def __str__(self) -> str:
        return f"{self._where()}, function `{self.func_name}`"


@dataclass(frozen=True)
class LockedFuncRepository(_LockedKernel):
    """The function `func_name` of a kernel that a lock file pins, as a layer whose forward calls it."""

    func_name: str = field(kw_only=True)

    def load(self) -> type[nn.Module]:
        """Raises: LayerError, and what `get_locked_kernel` raises."""
        return _function(self._kernel(), self.func_name, self)

    def __str__(self) -> str:
        return f"{self._where()}, function `{self.func_name}`"


def load_for(repository: Repository, device_type: str) -> type[nn.Module]:
    """`load`, in the CPU's variant for a model on the CPU, where torch has a GPU's backend as well."""
    if device_type == "cpu" and isinstance(repository, (_HubKernel, _LocalKernel)):
        cpu: Any = repository
        layer: type[nn.Module] = cpu.load(backend="cpu")
        return layer
    return repository.load()


def _layer(kernel: ModuleType, name: str, repository: Repository) -> type[nn.Module]:
    layers = getattr(kernel, "layers", None)
    if layers is None:
        raise LayerError(f"{repository}: the kernel has no `layers`: ask its publisher for them")
    layer: type[nn.Module] | None = getattr(layers, name, None)
    if layer is None:
        has = ", ".join(n for n, value in vars(layers).items() if isinstance(value, type) and n[0] != "_")
        raise LayerError(f"{repository}: the kernel has no such layer: it has {has or 'none'}")
    return layer


def _function(kernel: ModuleType, name: str, repository: Repository) -> type[nn.Module]:
    function = getattr(kernel, name, None)
    if not callable(function):
        has = ", ".join(getattr(kernel, "__all__", ())) or "none"
        raise LayerError(f"{repository}: the kernel has no such function: it has {has}")
    return function_layer(function)


def _given(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _freeze_trust(repository: _HubKernel | _LockedKernel) -> None:
    """A list would make the repository unhashable, and change under it."""
    trust = repository.trust_remote_code
    if isinstance(trust, list):
        object.__setattr__(repository, "trust_remote_code", tuple(trust))
