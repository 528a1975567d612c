"""What a hub's TUF metadata said of an organization when it was last verified. Pure, but for one file.

A load that needs nothing newer reads this file and neither imports `tuf` nor sends a request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..record import NOTHING, Record
from .evidence import TufTarget
from .tuf_names import Target

SCHEMA = 1


class Listed(Record):
    """A version: SHA-256 and length of its index.json, the commit it is at, why it was taken back."""

    sha256: str
    length: int
    commit: str | None = None
    yanked: str | None = None


class Namespace(Record):
    """An organization's versions by target path, verified from the root whose SHA-256 is `root`.

    `as_of` is when the hub showed it, `expires` until when what it showed is good (seconds since 1970), `key_ids` who
    signed it. `refused` is why nothing of it may be loaded any more: its publisher's key was revoked.
    """

    root: str
    as_of: float
    expires: float
    key_ids: frozenset[str] = frozenset()
    targets: Mapping[str, Listed] = NOTHING
    refused: str | None = None

    def versions(self, repo_id: str) -> list[int]:
        """The versions of a repository that are not taken back, in ascending order."""
        start, end = f"{repo_id}/v", "/index.json"
        found = [
            int(path[len(start) : -len(end)])
            for path, listed in self.targets.items()
            if path.startswith(start) and path.endswith(end) and listed.yanked is None
        ]
        return sorted(found)

    def target(self, target: Target) -> TufTarget | None:
        """The evidence on a version; None if it is not listed."""
        listed = self.targets.get(str(target))
        if listed is None:
            return None
        return TufTarget(str(target), listed.sha256, listed.length, self.key_ids, self.as_of, listed.yanked)

    def to_json(self) -> bytes:
        """The file's bytes."""
        data = {
            "schema": SCHEMA,
            "root": self.root,
            "as_of": self.as_of,
            "expires": self.expires,
            "key_ids": sorted(self.key_ids),
            "targets": {path: vars(listed) for path, listed in self.targets.items()},
            "refused": self.refused,
        }
        return (json.dumps(data, indent=1) + "\n").encode()


def read_namespace(path: Path) -> Namespace | None:
    """The record; None where there is none, or of another edition. Raises UsageError if it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): set KHUB_TRUST_FILE") from None
    try:
        return _namespace(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"{path} is damaged: delete it, it will be made again") from None


def _namespace(data: Any) -> Namespace | None:
    if data["schema"] != SCHEMA:
        return None
    targets = {
        path: Listed(str(one["sha256"]), int(one["length"]), one["commit"], one["yanked"])
        for path, one in data["targets"].items()
    }
    return Namespace(
        root=str(data["root"]),
        as_of=float(data["as_of"]),
        expires=float(data["expires"]),
        key_ids=frozenset(map(str, data["key_ids"])),
        targets=targets,
        refused=data["refused"],
    )
