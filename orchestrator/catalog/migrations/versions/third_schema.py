"""Certificates that are being renewed; source builds and locks."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("fingerprint_before", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("versions", sa.Column("build", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("layers", sa.Column("lock", sa.Text(), nullable=False, server_default=""))
