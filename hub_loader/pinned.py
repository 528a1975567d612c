"""What requests mean in this process: the first answer holds for its life. It can be asked for ahead of its use."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TypeAlias

from .background import InBackground
from .config import Config
from .errors import UsageError
from .hub import check_repo_id
from .pin import Version, is_new_here, open_version
from .request import Request
from .session import session

_Key: TypeAlias = tuple[str, Path, Request]
_versions: dict[_Key, Version] = {}
_asked: dict[_Key, InBackground[Version]] = {}
_lock = threading.RLock()


def make_request(repo_id: str, version: int | None, revision: str | None) -> Request:
    """What the arguments mean. Raises UsageError if they contradict each other or are misspelt."""
    check_repo_id(repo_id)
    if version is not None and revision is not None:
        raise UsageError(
            f"{repo_id}: version={version} and revision={revision!r} are both given: pass one of them"
        )
    if isinstance(version, bool) or not isinstance(version, int | None):
        raise UsageError(
            f"{repo_id}: version={version!r} is not a number: pass revision= for a branch, tag or commit"
        )
    return Request(repo_id, version, revision)


def pinned_version(config: Config, request: Request, *, fresh: bool = False) -> Version:
    """`open_version`, whose first answer holds for the life of the process. Raises as that does."""
    key = (config.endpoint, config.cache, request)
    with _lock:
        if key not in _versions:
            asked = _asked.pop(key, None)
            if asked is not None and not fresh:
                _versions[key] = asked.result()
            else:
                _versions[key] = open_version(config, request, fresh=fresh)
        return _versions[key]


def ask_ahead(config: Config, request: Request) -> bool:
    """Have the hub asked for a version of which the cache knows nothing, while the caller does something else.

    Returns whether it is asked. `pinned_version` gives the answer, or raises what came of it; who ends
    without it has to `drop` it, else a later call would be given an old one.
    """
    if not is_new_here(config, request):
        return False
    session()  # slow to import: were it left to the thread, the two would take each other's time
    key = (config.endpoint, config.cache, request)
    with _lock:
        if key not in _versions and key not in _asked:
            _asked[key] = InBackground(lambda: open_version(config, request))
    return True


def drop(config: Config, request: Request) -> None:
    """Forget what was asked ahead and nobody has taken: who asks next is told what holds then."""
    _asked.pop((config.endpoint, config.cache, request), None)


def _forget() -> None:
    """After a fork: the threads that ask are the parent's, and one of them may have held the lock."""
    global _lock
    _lock = threading.RLock()
    _asked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
