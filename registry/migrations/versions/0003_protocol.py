"""Private and gated repositories, former names, pull requests, counts of downloads."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("repos", sa.Column("private", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("repos", sa.Column("gated", sa.String(8)))
    op.create_table(
        "repo_moves",
        sa.Column("org", sa.String(96), primary_key=True),
        sa.Column("name", sa.String(96), primary_key=True),
        _repo(key=False),
    )
    op.create_index("ix_repo_moves_repo_id", "repo_moves", ["repo_id"])
    op.create_table(
        "repo_access",
        _repo(),
        sa.Column("account", _ordered(96), primary_key=True),
        sa.Column("status", sa.String(10), nullable=False),
        sa.Column("reason", sa.String(200)),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "pulls",
        _repo(),
        sa.Column("num", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("title", sa.String(200), nullable=False),
        sa.Column("description", sa.String, nullable=False),
        sa.Column("author", sa.String(96), nullable=False),
        sa.Column("status", sa.String(10), nullable=False),
        sa.Column("base", sa.String(210), nullable=False),
        sa.Column("base_oid", sa.String(40), nullable=False),
        sa.Column("merge_oid", sa.String(40)),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "downloads",
        _repo(),
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
    )


def _repo(*, key: bool = True) -> sa.Column[int]:
    parent = sa.ForeignKey("repos.id", ondelete="CASCADE")
    return sa.Column("repo_id", sa.Integer, parent, primary_key=key, nullable=False)


def _ordered(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
