"""Certificates that are being renewed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("fingerprint_before", sa.String(length=64), nullable=False, server_default=""))
