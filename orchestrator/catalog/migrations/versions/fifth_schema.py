"""Private networks: what they are, which versions are in one, and for which one a process joined."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "vpcs",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("cidrs", sa.JSON(), nullable=False),
        sa.Column("rules", sa.JSON(), nullable=False),
        sa.Column("address", sa.String(length=15), nullable=False),
        sa.Column("resolver", sa.String(length=15), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("removed", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"]),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index("vpcs_by_name", "vpcs", ["tenant", "name"])
    op.add_column("tenants", sa.Column("max_vpcs", sa.Integer(), nullable=True))
    op.add_column("versions", sa.Column("vpc", sa.String(length=63), nullable=False, server_default=""))
    op.add_column("nodes", sa.Column("vpc", sa.String(length=127), nullable=False, server_default=""))
    with op.batch_alter_table("nodes") as nodes:
        nodes.add_column(sa.Column("number", sa.Integer(), nullable=True))
        nodes.create_unique_constraint("nodes_number_key", ["number"])
    members = op.get_bind().execute(sa.text("SELECT name FROM nodes WHERE role = 'node' AND state <> 'left' ORDER BY name"))
    for number, (name,) in enumerate(members.all(), start=2):
        op.get_bind().execute(sa.text("UPDATE nodes SET number = :number WHERE name = :name"), {"number": number, "name": name})
    op.add_column("join_tokens", sa.Column("vpc", sa.String(length=127), nullable=False, server_default=""))
