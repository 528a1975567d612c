"""What an export carries of a copy of an upstream's repository beside its commits and files. Pure.

A copy has the commits that somebody asked for, under the upstream's ids, which nobody here can compute again, and the
content that somebody asked for. The rest of its files are carried as what the upstream's listing says of them, with
a stand-in for their SHA-256 (`mirrored.py`): the importing hub lists them, and answers that their content is not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from .mirrored import awaited, is_awaited
from .names import check_sha256
from .tree import File, lfs_file
from .upstream import KINDS


@dataclass(frozen=True)
class Copied:
    """Of which hub it is a copy, that hub's word for its type, and when that was last asked (UTC).

    `claims` are the SHA-256 that the upstream lists of LFS files whose content is not here, by git's id.
    """

    upstream: str
    kind: str
    checked_at: datetime
    claims: Mapping[str, str]

    def document(self) -> dict[str, Any]:
        """As it stands in the archive."""
        return {
            "upstream": self.upstream,
            "kind": self.kind,
            "checked_at": self.checked_at.isoformat(),
            "claims": dict(self.claims),
        }


def read_copied(document: Any) -> Copied | None:
    """What `Copied.document` wrote. Raises ValueError, KeyError, TypeError, AttributeError."""
    if document is None:
        return None
    url, time = str(document["upstream"]), datetime.fromisoformat(document["checked_at"])
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or len(url) > 400:
        raise ValueError(f"the upstream {url!r}")
    if document["kind"] not in KINDS or time.tzinfo is not None:
        raise ValueError("kind or checked_at of a copy")
    claims = {oid: check_sha256(sha256) for oid, sha256 in document["claims"].items()}
    return Copied(url, document["kind"], time, claims)


def check_stand_in(file: File, copied: Copied | None) -> None:
    """Raises ValueError for a stand-in that is not this file's, or not in a copy, or for a claim that is not its."""
    if not is_awaited(file.sha256):
        return
    if copied is None or file.sha256 != awaited(file.oid):
        raise ValueError(file)
    claimed = copied.claims.get(file.oid)
    if claimed is not None and lfs_file(claimed, file.size) != replace(file, sha256=claimed):
        raise ValueError(f"the claim of {file.oid}")


def check_claims(files: Iterable[File], copied: Copied | None) -> None:
    """Raises ValueError for a claim about none of the files; those of all copies are kept in one table, by git's id."""
    if copied is not None and not copied.claims.keys() <= {
        file.oid for file in files if is_awaited(file.sha256)
    }:
        raise ValueError("a claim of a file that is not here")


def leave_out(
    trees: Mapping[str, Mapping[str, File]], missing: Iterable[str]
) -> tuple[dict[str, dict[str, File]], dict[str, str]]:
    """The trees with stand-ins for `missing` content, and the claims that follow from those that were LFS files."""
    gone = set(missing)
    claims: dict[str, str] = {}
    made: dict[str, dict[str, File]] = {}
    for oid, tree in trees.items():
        made[oid] = {}
        for path, file in tree.items():
            if file.sha256 in gone:
                claims |= {file.oid: file.sha256} if file.lfs else {}
                file = replace(file, sha256=awaited(file.oid))
            made[oid][path] = file
    return made, claims
