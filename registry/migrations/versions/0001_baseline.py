"""Organizations, tokens, repositories, commits, references and trees."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "orgs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(96), nullable=False, unique=True),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer, primary_key=True),
        _belongs_to("org_id", "orgs.id"),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.Column("can_write", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "repos",
        sa.Column("id", sa.Integer, primary_key=True),
        _belongs_to("org_id", "orgs.id"),
        sa.Column("name", sa.String(96), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_index("repo_name", "repos", ["org_id", "name"], unique=True)
    op.create_table(
        "commits",
        _belongs_to("repo_id", "repos.id", key=True),
        sa.Column("oid", sa.String(40), primary_key=True),
        sa.Column("parent_oid", sa.String(40)),
        sa.Column("tree_oid", sa.String(40), nullable=False),
        sa.Column("author", sa.String(96), nullable=False),
        sa.Column("message", sa.String, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "refs",
        _belongs_to("repo_id", "repos.id", key=True),
        sa.Column("name", _ordered(210), primary_key=True),
        sa.Column("commit_oid", sa.String(40), nullable=False),
    )
    op.create_table(
        "tree_entries",
        _belongs_to("repo_id", "repos.id", key=True),
        sa.Column("tree_oid", sa.String(40), primary_key=True),
        sa.Column("path", _ordered(1024), primary_key=True),
        sa.Column("folder", _ordered(1024), nullable=False),
        sa.Column("oid", sa.String(40), nullable=False),
        sa.Column("sha256", sa.String(64)),
        sa.Column("size", sa.BigInteger),
        sa.Column("lfs", sa.Boolean, nullable=False),
    )
    op.create_index("tree_folder", "tree_entries", ["repo_id", "tree_oid", "folder", "path"])
    op.create_index("tree_content", "tree_entries", ["sha256"])


def _belongs_to(name: str, target: str, *, key: bool = False) -> sa.Column[int]:
    reference = sa.ForeignKey(target, ondelete="CASCADE")
    return sa.Column(name, sa.Integer, reference, primary_key=key, nullable=False)


def _ordered(length: int) -> sa.types.TypeEngine[str]:
    """Text that sorts by its bytes everywhere, as SQLite's does."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
