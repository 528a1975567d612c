"""Publishers' lists over an air gap: an organization's role goes along, with its publishers' signatures.

The other hub has a root and people of its own, who decide whose keys publish there; what those keys have signed here
holds there too, because targets name commits, and commits keep their ids. Root, targets, snapshot and timestamp stay: a
timestamp is good for a day, so a hub that showed another's would be out of date before the disk has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from hub_loader.manifest import INDEX_NAME
from hub_loader.trust.tuf_names import role_of

from ..errors import RequestError
from ..models import Commit, Org, Repo, TreeEntry, TufMetadata
from .repository import TufRepository
from .upload import Claim


def read_lists(session: Session, orgs: Sequence[str]) -> dict[str, bytes]:
    """The current role of each organization that has one, as its publishers signed it."""
    found = {}
    for org in orgs:
        data = session.scalar(
            select(TufMetadata.data).where(
                TufMetadata.role == role_of(org), TufMetadata.superseded_at.is_(None)
            )
        )
        if data is not None:
            found[org] = data
    return found


def take_list(repository: TufRepository | None, org: str, data: bytes) -> str:
    """Make it the organization's list here, if it may be; returns what became of it, as a sentence."""
    if repository is None or repository.offline() is None:
        return "left out: this hub is no TUF repository, see `khub registry trust init --help`"
    try:
        version = repository.take_over(org, data, carried_lack)
    except RequestError as error:
        return f"left out: {error.message}"
    return "it is here already" if version is None else f"version {version} taken over"


def carried_lack(session: Session, claim: Claim) -> str | None:
    """Why a claim is not true of a repository that is here; None if it is, or if the repository is not here.

    Its branch may be ahead of the commit: the list says what a version is.
    """
    target = claim.target
    query = (
        select(Repo.id, TreeEntry.sha256, TreeEntry.size)
        .join(Org, Org.id == Repo.org_id)
        .outerjoin(Commit, and_(Commit.repo_id == Repo.id, Commit.oid == claim.commit))
        .outerjoin(
            TreeEntry,
            and_(
                TreeEntry.repo_id == Repo.id,
                TreeEntry.tree_oid == Commit.tree_oid,
                TreeEntry.path == INDEX_NAME,
            ),
        )
        .where(Org.name == target.org, Repo.name == target.name)
    )
    row = session.execute(query).first()
    if row is None or tuple(row[1:]) == (claim.sha256, claim.length):
        return None
    return f"{target.repo_id} here has not the {INDEX_NAME} of {target.branch} at {claim.commit}"
