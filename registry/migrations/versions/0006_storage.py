"""Content that nothing refers to, and since when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "orphans",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("since", sa.DateTime, nullable=False),
    )
