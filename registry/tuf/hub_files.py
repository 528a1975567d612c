"""Whether what a target claims is on the hub."""

from __future__ import annotations

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from hub_loader.manifest import INDEX_NAME

from ..models import Commit, Org, Ref, Repo, TreeEntry
from .upload import Claim


def lack_of(session: Session, claim: Claim) -> str | None:
    """Why a claim is not true of the head of its version's branch, as a sentence; None if it is."""
    target = claim.target
    query = (
        select(Ref.commit_oid, TreeEntry.sha256, TreeEntry.size)
        .join(Repo, Repo.id == Ref.repo_id)
        .join(Org, Org.id == Repo.org_id)
        .join(Commit, and_(Commit.repo_id == Repo.id, Commit.oid == Ref.commit_oid))
        .outerjoin(
            TreeEntry,
            and_(
                TreeEntry.repo_id == Repo.id,
                TreeEntry.tree_oid == Commit.tree_oid,
                TreeEntry.path == INDEX_NAME,
            ),
        )
        .where(Org.name == target.org, Repo.name == target.name, Ref.name == f"heads/{target.branch}")
    )
    row = session.execute(query).first()
    if row is None:
        return f"{target.repo_id} has no branch {target.branch} on this hub"
    head, sha256, size = row
    if head != claim.commit:
        return f"{target.branch} is at {head}, not at {claim.commit}"
    if (sha256, size) != (claim.sha256, claim.length):
        return f"{INDEX_NAME} there is another: sha256 {sha256}, {size} bytes"
    return None
