"""Users, members, publishers, limits, settings and the audit log; tokens that are more than an organization's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column(
        "orgs", sa.Column("trusted_publisher", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.add_column("orgs", sa.Column("quota_bytes", sa.BigInteger))
    op.add_column("orgs", sa.Column("max_file_bytes", sa.BigInteger))
    op.add_column("orgs", sa.Column("max_commit_files", sa.Integer))
    _people()
    _publishers()
    _tokens()
    op.create_table(
        "settings",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.String, nullable=False),
    )
    _audit()


def _people() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(96), nullable=False, unique=True),
        sa.Column("full_name", sa.String(200), nullable=False),
        sa.Column("operator", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "members",
        _belongs_to("org_id", "orgs.id", key=True),
        _belongs_to("user_id", "users.id", key=True),
        sa.Column("role", sa.String(8), nullable=False),
    )
    op.create_index("ix_members_user_id", "members", ["user_id"])


def _publishers() -> None:
    op.create_table(
        "publishers",
        sa.Column("id", sa.Integer, primary_key=True),
        _belongs_to("org_id", "orgs.id"),
        sa.Column("issuer", sa.String(400), nullable=False),
        sa.Column("repository", sa.String(200), nullable=False),
        sa.Column("kernel", sa.String(96)),
        sa.Column("workflow", sa.String(200)),
        sa.Column("environment", sa.String(200)),
        sa.Column("ref", sa.String(200)),
        sa.Column("owner_id", sa.String(32)),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_index("ix_publishers_org_id", "publishers", ["org_id"])
    op.create_table(
        "used_proofs",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("expires_at", sa.DateTime, nullable=False),
    )
    op.create_index("ix_used_proofs_expires_at", "used_proofs", ["expires_at"])


def _tokens() -> None:
    """Those that exist stay what they are: an organization's, for writing or for reading."""
    with op.batch_alter_table("tokens") as batch:
        batch.alter_column("org_id", existing_type=sa.Integer, nullable=True)
        for name, target in (
            ("user_id", "users.id"),
            ("publisher_id", "publishers.id"),
            ("parent_id", "tokens.id"),
            ("only_org_id", "orgs.id"),
        ):
            batch.add_column(sa.Column(name, sa.Integer))
            table, _, column = target.partition(".")
            batch.create_foreign_key(f"token_{name}", table, [name], [column], ondelete="CASCADE")
        batch.add_column(sa.Column("only_repo", sa.String(96)))
        batch.add_column(sa.Column("scope", sa.String(8), nullable=False, server_default="read"))
        batch.add_column(sa.Column("label", sa.String(200), nullable=False, server_default=""))
        for name in ("expires_at", "revoked_at", "last_used_at"):
            batch.add_column(sa.Column(name, sa.DateTime))
        batch.create_check_constraint("token_owner", "(org_id IS NULL) <> (user_id IS NULL)")
    tokens = sa.table("tokens", sa.column("can_write", sa.Boolean), sa.column("scope", sa.String))
    op.execute(tokens.update().where(tokens.c.can_write).values(scope="write"))
    with op.batch_alter_table("tokens") as batch:
        batch.drop_column("can_write")


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("token_id", sa.Integer),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(400), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("detail", sa.String, nullable=False),
    )
    op.create_index("audit_subject", "audit", ["subject"])
    op.create_index("audit_actor", "audit", ["actor"])
    if op.get_bind().dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_no_{event.lower()} BEFORE {event} ON audit "
                "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()"
    )


def _belongs_to(name: str, target: str, *, key: bool = False) -> sa.Column[int]:
    reference = sa.ForeignKey(target, ondelete="CASCADE")
    return sa.Column(name, sa.Integer, reference, primary_key=key, nullable=False)
