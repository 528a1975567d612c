"""What a caller asks for, and what its ref means. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection

from .errors import VersionNotFoundError
from .record import Record

_VERSION_BRANCH = re.compile(r"v(0|[1-9]\d*)", re.ASCII)


class Request(Record):
    """What a caller asked for: at most one of `version` and `revision`; neither means the newest version."""

    repo_id: str
    version: int | None
    revision: str | None

    @property
    def ref(self) -> str | None:
        """The branch, tag or commit by name; None for the newest version."""
        return f"v{self.version}" if self.version is not None else self.revision

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.repo_id} version {self.version}"
        return f"{self.repo_id} at {self.revision}" if self.revision else self.repo_id


def versions(refs: Collection[str]) -> list[int]:
    """The versions among names of refs, in ascending order: branches v<N>."""
    return sorted(int(match[1]) for name in refs if (match := _VERSION_BRANCH.fullmatch(name)))


def pick_ref(request: Request, refs: Collection[str]) -> str:
    """The name of the ref a request means; without version or revision the newest v<N>, else main.

    Raises:
        VersionNotFoundError: there is none; the message lists those that are.
    """
    known = versions(refs)
    name = request.ref or (f"v{known[-1]}" if known else "main")
    if name not in refs:
        there = ", ".join(f"v{version}" for version in known) or ", ".join(sorted(refs)) or "nothing"
        what = name if request.ref else "version yet, and no main branch"
        raise VersionNotFoundError(f"{request.repo_id} has no {what}: it has {there}")
    return name
