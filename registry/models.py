"""The tables: organizations, users, their tokens and repositories, and each repository's commits and references.

A commit's files are the entries of its tree, one row for each file and folder; commits with equal content
share a tree. File content is not here but in `blobs.py`, named by SHA-256. A change here comes with a
migration (`migrations/__init__.py`).
"""

from __future__ import annotations

from datetime import date, datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

CONTENT = {
    "content": True
}  # the `info` of columns that name content by its SHA-256: it is not collected then


def _ordered(length: int) -> TypeEngine[str]:
    """Text that sorts by its bytes everywhere, as SQLite's does."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


class Base(DeclarativeBase):
    """The registry's tables."""


class Org(Base):
    """An organization: the first half of `org/name`. A limit that is null is the hub's (`accounts/limits.py`)."""

    __tablename__ = "orgs"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(96), unique=True)
    trusted_publisher: Mapped[bool] = mapped_column(default=False)
    quota_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_file_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_commit_files: Mapped[int | None]


class User(Base):
    """A person; an operator runs the hub."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(96), unique=True)
    full_name: Mapped[str] = mapped_column(String(200))
    operator: Mapped[bool]
    created_at: Mapped[datetime]


class Member(Base):
    """A user's role in an organization: `reader`, `writer` or `owner`."""

    __tablename__ = "members"
    org_id: Mapped[int] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    role: Mapped[str] = mapped_column(String(8))


class Publisher(Base):
    """A CI workflow that may upload for an organization (`oidc/publishers.py`); null asks for nothing."""

    __tablename__ = "publishers"
    id: Mapped[int] = mapped_column(primary_key=True)
    org_id: Mapped[int] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"), index=True)
    issuer: Mapped[str] = mapped_column(String(400))
    repository: Mapped[str] = mapped_column(String(200))
    kernel: Mapped[str | None] = mapped_column(String(96))
    workflow: Mapped[str | None] = mapped_column(String(200))
    environment: Mapped[str | None] = mapped_column(String(200))
    ref: Mapped[str | None] = mapped_column(String(200))
    owner_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime]


class UsedProof(Base):
    """An issuer's token that was exchanged, by the SHA-256 of its issuer and id: it is good for once."""

    __tablename__ = "used_proofs"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Token(Base):
    """A secret that stands for an organization or a user; only its SHA-256 is kept. `hint` is how it begins.

    `only_org_id` and `only_repo` limit it, `publisher_id` says which CI workflow it was made for, `parent_id`
    with which token a browser logged in.
    """

    __tablename__ = "tokens"
    __table_args__ = (CheckConstraint("(org_id IS NULL) <> (user_id IS NULL)", name="token_owner"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    org_id: Mapped[int | None] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    publisher_id: Mapped[int | None] = mapped_column(ForeignKey("publishers.id", ondelete="CASCADE"))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("tokens.id", ondelete="CASCADE"))
    only_org_id: Mapped[int | None] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"))
    only_repo: Mapped[str | None] = mapped_column(String(96))
    scope: Mapped[str] = mapped_column(String(8))
    label: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Audit(Base):
    """An entry of the audit log. Triggers refuse to change or remove one; `detail` is a JSON object."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_subject", "subject"), Index("audit_actor", "actor"))
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(200))
    token_id: Mapped[int | None]
    address: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(400))
    status: Mapped[int]
    detail: Mapped[str]


class Setting(Base):
    """What all processes on one database share: settings (`accounts/settings.py`), the key of uploads, turns."""

    __tablename__ = "settings"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str]


class Repo(Base):
    """A repository, under whichever of the Hub's types a client asks for it. `gated`: None, "auto" or "manual"."""

    __tablename__ = "repos"
    __table_args__ = (Index("repo_name", "org_id", "name", unique=True),)
    id: Mapped[int] = mapped_column(primary_key=True)
    org_id: Mapped[int] = mapped_column(ForeignKey("orgs.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(96))
    created_at: Mapped[datetime]
    private: Mapped[bool] = mapped_column(default=False, server_default=false())
    gated: Mapped[str | None] = mapped_column(String(8))


class Mirror(Base):
    """That a repository is a copy of an upstream hub's, which was last asked at `checked_at` (`mirror.py`).

    `kind` is the upstream's word for its type. Its commits have the upstream's ids and no parents here; references
    may lead to commits, and commits to content, that nobody has asked for yet.
    """

    __tablename__ = "mirrors"
    repo_id: Mapped[int] = mapped_column(ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True)
    upstream: Mapped[str] = mapped_column(String(400))
    kind: Mapped[str] = mapped_column(String(8))
    checked_at: Mapped[datetime]


class MirrorClaim(Base):
    """The SHA-256 that an upstream's LFS pointer names, by git's id of the pointer; nobody has seen the content."""

    __tablename__ = "mirror_claims"
    oid: Mapped[str] = mapped_column(String(40), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))


class RepoMove(Base):
    """A name that a repository had before."""

    __tablename__ = "repo_moves"
    org: Mapped[str] = mapped_column(String(96), primary_key=True)
    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    repo_id: Mapped[int] = mapped_column(ForeignKey("repos.id", ondelete="CASCADE"), index=True)


class RepoAccess(Base):
    """Somebody's request for a gated repository: pending, accepted or rejected; a grant is an accepted one."""

    __tablename__ = "repo_access"
    repo_id: Mapped[int] = mapped_column(ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True)
    account: Mapped[str] = mapped_column(_ordered(96), primary_key=True)
    status: Mapped[str] = mapped_column(String(10))
    reason: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[datetime]


class Pull(Base):
    """A pull request: its commits are at the reference `pr/<num>`, which left `base` at `base_oid`."""

    __tablename__ = "pulls"
    repo_id: Mapped[int] = mapped_column(ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True)
    num: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str] = mapped_column(String(200))
    description: Mapped[str]
    author: Mapped[str] = mapped_column(String(96))
    status: Mapped[str] = mapped_column(String(10))
    base: Mapped[str] = mapped_column(String(210))
    base_oid: Mapped[str] = mapped_column(String(40))
    merge_oid: Mapped[str | None] = mapped_column(String(40))
    created_at: Mapped[datetime]


class Upload(Base):
    """Content that came in for a repository by itself, to be committed by its digest."""

    __tablename__ = "uploads"
    repo_id: Mapped[int] = mapped_column(ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime]


class Download(Base):
    """How many variants of a repository were fetched on a day (UTC)."""

    __tablename__ = "downloads"
    repo_id: Mapped[int] = mapped_column(ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)


class Commit(Base):
    """A commit; `oid` is git's id of it, `tree_oid` of its files."""

    __tablename__ = "commits"
    repo_id: Mapped[int] = mapped_column(ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True)
    oid: Mapped[str] = mapped_column(String(40), primary_key=True)
    parent_oid: Mapped[str | None] = mapped_column(String(40))
    tree_oid: Mapped[str] = mapped_column(String(40))
    author: Mapped[str] = mapped_column(String(96))
    message: Mapped[str]
    created_at: Mapped[datetime]


class Ref(Base):
    """A branch (`heads/v1`), tag (`tags/release`) or pull request (`pr/1`) and the commit it points to."""

    __tablename__ = "refs"
    repo_id: Mapped[int] = mapped_column(ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(_ordered(210), primary_key=True)
    commit_oid: Mapped[str] = mapped_column(String(40))


class TreeEntry(Base):
    """A file or folder of a repository's tree. A folder has neither `sha256` nor `size`.

    The `sha256` of a mirrored file that was never fetched may be a stand-in (`mirrored.py`).
    """

    __tablename__ = "tree_entries"
    __table_args__ = (
        Index("tree_folder", "repo_id", "tree_oid", "folder", "path"),
        Index("tree_content", "sha256"),
    )
    repo_id: Mapped[int] = mapped_column(ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True)
    tree_oid: Mapped[str] = mapped_column(String(40), primary_key=True)
    path: Mapped[str] = mapped_column(_ordered(1024), primary_key=True)
    folder: Mapped[str] = mapped_column(_ordered(1024))
    oid: Mapped[str] = mapped_column(String(40))
    sha256: Mapped[str | None] = mapped_column(String(64), info=CONTENT)
    size: Mapped[int | None] = mapped_column(BigInteger)
    lfs: Mapped[bool]


class TufMetadata(Base):
    """A version of a role of the TUF repository, as the bytes that were signed.

    The current one has no `superseded_at`; of root every version stays for ever.
    """

    __tablename__ = "tuf_metadata"
    __table_args__ = (Index("tuf_current", "role", "superseded_at"),)
    role: Mapped[str] = mapped_column(String(120), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(LargeBinary)
    expires: Mapped[datetime]
    created_at: Mapped[datetime]
    superseded_at: Mapped[datetime | None]


class Orphan(Base):
    """Content that nothing refers to, and since when that is known and nobody asked for it."""

    __tablename__ = "orphans"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    since: Mapped[datetime]
