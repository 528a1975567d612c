"""Take over a copy of an upstream's repository from an archive: it is a copy of the same upstream here, too.

A copy's references are the upstream's, and the newer of two copies is the one whose upstream was asked later.
"""

from __future__ import annotations

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from hub_loader.errors import RegistryError

from .carried import Carried
from .carried_copy import Copied
from .locks import insert_missing
from .mirrored import awaited, origin_of
from .models import Mirror, MirrorClaim, Ref, Repo, TreeEntry
from .store import find_repo


def check_copy(session: Session, carried: Carried, copied: Copied, force: bool) -> None:
    """Raises RegistryError where the name is another repository's here, or a newer copy's (but for `force`)."""
    origin, repo = origin_of(session, carried.repo), carried.repo
    if origin is None:
        if find_repo(session, repo) is not None:
            raise RegistryError(
                f"{repo} is a repository of this hub, and in the archive a copy of {copied.upstream}/{repo}: nothing "
                "was imported."
            )
    elif origin.upstream != copied.upstream:
        raise RegistryError(
            f"{repo} is a copy of {origin.upstream}/{repo} here, and in the archive of {copied.upstream}/{repo}: "
            "nothing was imported. Delete the copy here to take the other one."
        )
    elif copied.checked_at < origin.checked_at and not force:
        raise RegistryError(
            f"{repo} was copied here at {origin.checked_at}Z, and in the archive at {copied.checked_at}Z: nothing was "
            "imported. Take a newer archive, or --force to go back to it."
        )


def write_copy(session: Session, repo_id: int, carried: Carried, copied: Copied) -> None:
    """Say that the repository is a copy, what its upstream claims, and which of its content has come by now."""
    row = {
        "repo_id": repo_id,
        "upstream": copied.upstream,
        "kind": copied.kind,
        "checked_at": copied.checked_at,
    }
    insert_missing(session, Mirror, [row])
    session.execute(update(Mirror).where(Mirror.repo_id == repo_id).values(checked_at=copied.checked_at))
    session.execute(
        update(Repo).where(Repo.id == repo_id).values(private=carried.private, gated=carried.gated)
    )
    claims = [{"oid": oid, "sha256": sha256} for oid, sha256 in sorted(copied.claims.items())]
    insert_missing(session, MirrorClaim, claims)
    gone = Ref.repo_id == repo_id, Ref.name.not_in(carried.refs)
    session.execute(delete(Ref).where(*gone))
    for oid, sha256 in sorted({(file.oid, file.sha256) for file in carried.files()}):
        stand_in = TreeEntry.repo_id == repo_id, TreeEntry.sha256 == awaited(oid)
        session.execute(update(TreeEntry).where(*stand_in).values(sha256=sha256))
