"""Where a model's folder is: on this machine, or fetched by name from the hub that HF_ENDPOINT names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hub_loader.errors import (
    AuthenticationError,
    DownloadError,
    KernelHubError,
    ModelError,
    OfflineError,
    RepositoryNotFoundError,
    UsageError,
    VersionNotFoundError,
)

# What the engine reads of a repository. Weights in other formats are left where they are.
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "quantize_config.json",
)
SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+\.gguf))?", re.ASCII)
_TRUE = ("1", "ON", "YES", "TRUE")


def find_model(model: str | Path, revision: str | None = None) -> Path:
    """A model's folder, or its GGUF file; what is not on this machine is fetched from the hub by its name.

    A name is org/name, or org/name/file.gguf. Only files that the engine reads are fetched, into the cache that all
    Hub clients share; HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE count as for every client. revision: a branch,
    tag or commit of the repository.

    Raises:
        ModelError: it is neither a folder nor a name; or the repository has no weights that the engine reads.
        UsageError: a revision of what is on this machine.
        RepositoryNotFoundError, VersionNotFoundError, AuthenticationError, DownloadError, OfflineError
    """
    path = Path(model)
    if path.exists():
        if revision is not None:
            raise UsageError(f"{model} is on this machine, which has no revisions: leave the revision out")
        return path
    named = _NAME.fullmatch(str(model))
    if not named or isinstance(model, Path):
        raise ModelError(
            f"{model} has no config.json: name a model folder in Hugging Face format, or org/name"
        )
    return _fetch(named[1], revision, named[2])


def _fetch(name: str, revision: str | None, file: str | None) -> Path:
    from huggingface_hub import snapshot_download

    # The client reads its environment when it is imported; ours is read at each call.
    endpoint = os.environ.get("HF_ENDPOINT") or None
    offline = any(os.environ.get(n, "").upper() in _TRUE for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    wanted = [*SETTINGS, file] if file else [*SETTINGS, *SAFETENSORS]
    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=wanted, endpoint=endpoint, local_files_only=offline
        )
    except Exception as error:  # the client's own, the HTTP library's, the system's: told apart below
        raise _translated(name, revision, error, endpoint, offline) from error
    folder = Path(found)
    if file:
        return _existing(folder / file, f"{name} has no file {file}: name one of its .gguf files")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{name} has no model.safetensors: name a repository that has, or one of its .gguf files"
        )
    return folder


def _existing(path: Path, refusal: str) -> Path:
    if not path.is_file():
        raise ModelError(refusal)
    return path


def _translated(
    name: str, revision: str | None, error: Exception, endpoint: str | None, offline: bool
) -> KernelHubError:
    """What a caller can do about an error of huggingface_hub, as this project says it."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    where = endpoint or constants.ENDPOINT
    missing = f"is no folder here, and not on {where}, or HF_TOKEN may not read it: check the name"
    kinds: Iterable[tuple[Any, type[KernelHubError], str]] = (
        (hub.GatedRepoError, AuthenticationError, f"is gated on {where}: ask for access, then set HF_TOKEN"),
        (hub.RepositoryNotFoundError, RepositoryNotFoundError, missing),
        (
            hub.RevisionNotFoundError,
            VersionNotFoundError,
            f"has no revision {revision!r}: name one that exists",
        ),
        (hub.HFValidationError, ModelError, f"is no name of a model ({error}): write org/name"),
    )
    for kind, ours, words in kinds:
        if isinstance(error, kind):
            return ours(f"{name} {words}")
    if offline:
        return OfflineError(
            f"{name} is not in the cache, or not all of it, and HF_HUB_OFFLINE is set: unset it for once"
        )
    why = " ".join(str(error).split())[:200]
    return DownloadError(
        f"{name} could not be fetched from {where} ({type(error).__name__}: {why}): try again"
    )
