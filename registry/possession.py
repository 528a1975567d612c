"""Whether a repository may hold content that is named by its digest and not sent.

Blobs are shared by all repositories. Who knows the SHA-256 of somebody's private file and not its bytes must
not get it by committing the digest, nor learn that it is here. So a digest stands for content that came in for
this repository, or that its organization or everybody can read already.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session

from .clock import utc_now
from .locks import insert_new
from .models import Repo, TreeEntry, Upload
from .store import Store

_FORGOTTEN = timedelta(days=7)  # after which an upload that was not committed has to be sent again
_AT_ONCE = 1000  # databases take so many parameters and no more


def record_upload(store: Store, repo_id: int, sha256: str) -> None:
    """Remember that the content came in for the repository."""
    now = utc_now()
    with store.write() as session:
        session.execute(delete(Upload).where(Upload.created_at < now - _FORGOTTEN))
        insert_new(session, Upload, {"repo_id": repo_id, "sha256": sha256, "created_at": now})


def linkable(session: Session, repo_id: int, digests: Collection[str]) -> set[str]:
    """Those of the digests that the repository may hold without their content being sent."""
    org = select(Repo.org_id).where(Repo.id == repo_id).scalar_subquery()
    readable = or_(Repo.org_id == org, and_(Repo.private.is_(False), Repo.gated.is_(None)))
    asked, found = sorted(digests), set()
    for start in range(0, len(asked), _AT_ONCE):
        some = asked[start : start + _AT_ONCE]
        sent = select(Upload.sha256).where(Upload.repo_id == repo_id, Upload.sha256.in_(some))
        read = (
            select(TreeEntry.sha256)
            .join(Repo, Repo.id == TreeEntry.repo_id)
            .where(TreeEntry.sha256.in_(some), readable)
        )
        found |= {sha256 for sha256 in session.scalars(sent.union(read)) if sha256 is not None}
    return found
