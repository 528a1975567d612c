"""The one error family: a class for each thing a caller can do something about.

Every message names the thing that is wrong and the cure. `exit_code` is what `khub` exits with, so a
script can tell the cases apart; codes are stable and documented in `docs/errors.md`.
"""

from __future__ import annotations

from pathlib import Path


class KernelHubError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 1


class UsageError(KernelHubError):
    """The arguments contradict each other or name nothing that exists."""

    exit_code = 2


class RepositoryNotFoundError(KernelHubError):
    """No such repository on the hub, or no permission to see it."""

    exit_code = 10


class VersionNotFoundError(KernelHubError):
    """The repository exists; the version or revision asked for does not."""

    exit_code = 11


class NoMatchingVariantError(KernelHubError):
    """No variant fits this environment; the message gives the reason for each."""

    exit_code = 12


class IntegrityError(KernelHubError):
    """A file's bytes are not the ones its manifest promises, or a file is there that should not be."""

    exit_code = 13


class DownloadError(KernelHubError):
    """The hub could not be reached, answered an error, or sent fewer bytes than promised."""

    exit_code = 14


class InvalidKernelError(KernelHubError):
    """A package breaks the format: a malformed manifest, or an id that would shadow a module."""

    exit_code = 15


class OfflineError(KernelHubError):
    """Offline mode is on and what was asked for is not in the cache."""

    exit_code = 16


class AuthenticationError(KernelHubError):
    """A token is missing, unknown, or lacks the permission."""

    exit_code = 17


class CacheError(KernelHubError):
    """The cache folder cannot be read or written, or a file of ours in it is damaged."""

    exit_code = 18


class MissingDependencyError(KernelHubError):
    """The kernel needs something that is not installed here: a Python package, or another kernel."""

    exit_code = 19


class PolicyError(KernelHubError):
    """The kernel may not be loaded here: its publisher is not trusted, and the caller did not allow it."""

    exit_code = 24


class SignatureError(PolicyError):
    """The publisher's signature is wrong, or revokes or contradicts what would be loaded; nothing allows that."""

    exit_code = 26


class LockError(KernelHubError):
    """A lock file is missing or malformed, or does not have the kernel asked for."""

    exit_code = 25


class BuildConfigError(KernelHubError):
    """`build.toml` cannot be read: syntax, an unknown key, a missing source file."""

    exit_code = 20


class ToolchainError(KernelHubError):
    """A compiler or SDK could not be provided."""

    exit_code = 21


class CompileError(KernelHubError):
    """The compiler or linker refused the source; the message says where the log is."""

    exit_code = 22

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class AuditError(KernelHubError):
    """A built binary breaks a promise its variant name makes."""

    exit_code = 23


class RegistryError(KernelHubError):
    """The registry's data folder cannot be used as asked."""

    exit_code = 30


class ModelError(KernelHubError):
    """A model folder is incomplete or of an architecture the engine does not run."""

    exit_code = 40


class SelfTestError(KernelHubError):
    """A kernel does not compute on this device what its reference does."""

    exit_code = 41


class ClusterError(KernelHubError):
    """There is no Ray cluster where one was named, or no replica of a model starts on it."""

    exit_code = 42


class ComputeError(KernelHubError):
    """What the model computed for a request is not finite, so no token can be chosen."""

    exit_code = 43


class MissingExtraError(KernelHubError):
    """A command needs an optional part of the distribution that is not installed."""

    exit_code = 50


class LayerError(KernelHubError, ValueError):
    """A layer cannot be replaced: no kernel is mapped to it, or the one that is does not fit."""

    exit_code = 60


class BenchmarkError(KernelHubError):
    """An engine that was to be measured did not get through the workload."""

    exit_code = 61
