"""How much a tenant's plans may let idle."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("max_prewarm_idle_s_per_busy_s", sa.Float(), nullable=True))
