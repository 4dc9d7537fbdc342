"""Quotas, key roles, nodes, join tokens, leases, instances made before traffic, conditions with their time and for routes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("generation", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("tenants", sa.Column("max_functions", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("max_concurrency", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("max_package_bytes", sa.BigInteger(), nullable=True))
    op.add_column("tenants", sa.Column("max_invocations_per_s", sa.Float(), nullable=True))
    op.add_column("tenants", sa.Column("max_prewarm_instances", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("removed", sa.Float(), nullable=True))
    op.add_column("keys", sa.Column("role", sa.String(length=16), nullable=False, server_default="tenant"))
    # the first schema had one key that could do everything: the one made for whoever runs the platform
    op.execute("UPDATE keys SET role = 'operator' WHERE tenant = 'default' AND name = 'admin'")
    op.add_column("versions", sa.Column("initial_instances", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("conditions", sa.Column("since", sa.Float(), nullable=False, server_default="0"))
    of_version = "versions.function = conditions.function AND versions.number = conditions.number"
    op.execute(f"UPDATE conditions SET since = (SELECT created FROM versions WHERE {of_version})")  # noqa: S608
    op.execute(
        "INSERT INTO conditions (function, number, name, status, reason, since) SELECT function, number, 'route', "
        "CASE state WHEN 'ready' THEN 'true' WHEN 'failed' THEN 'not needed' ELSE 'unknown' END, '', created FROM versions"
    )
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("address", sa.String(length=255), nullable=False),
        sa.Column("zone", sa.String(length=63), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("joined", sa.Float(), nullable=False),
        sa.Column("last_seen", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "join_tokens",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.Column("used", sa.Float(), nullable=True),
        sa.Column("used_by", sa.String(length=63), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("holder", sa.String(length=255), nullable=False),
        sa.Column("address", sa.String(length=255), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
