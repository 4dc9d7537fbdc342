"""How many instances of a version its owner allows and wants."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("versions", sa.Column("scaling", sa.JSON(), nullable=False, server_default="{}"))
