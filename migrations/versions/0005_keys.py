"""API keys, owners, their credentials, and the credential of a job.

Only adds tables and a column: the version before keeps working. It asks for no key, so while a process of it runs,
requests to that process are not authenticated; and it would run a job that names a credential with the service's own
tokens.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

TIME = sa.DateTime(timezone=True)
OWNER = sa.String(length=100)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("credential", sa.String(length=63), nullable=True))  # in place, on SQLite too
    op.create_table(
        "api_keys",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", OWNER, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("start", sa.String(length=16), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("is_local", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("jobs", sa.Integer(), nullable=True),
        sa.Column("model_bytes", sa.BigInteger(), nullable=True),
        sa.Column("tokens", sa.BigInteger(), nullable=True),
        sa.Column("lifetime_seconds", sa.Integer(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("id", name=op.f("uq_api_keys_id")),
        sa.UniqueConstraint("hash", name=op.f("uq_api_keys_hash")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_api_keys_owner_number", "api_keys", ["owner", "number"])
    op.create_table(
        "owners",
        sa.Column("owner", OWNER, nullable=False),
        sa.Column("output_namespaces", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_owners")),
    )
    op.create_table(
        "credentials",
        sa.Column("owner", OWNER, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("owner", "name", name=op.f("pk_credentials")),
    )


def downgrade() -> None:
    op.drop_table("credentials")
    op.drop_table("owners")
    op.drop_index("ix_api_keys_owner_number", "api_keys")
    op.drop_table("api_keys")
    op.drop_column("jobs", "credential")
