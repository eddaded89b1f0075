"""Alembic's entry point: the database to migrate and its metadata. `migrating` takes the lock."""

from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Enum

from replaceme_core.ledger.database import UtcDateTime
from replaceme_core.ledger.migrate import URL_ATTRIBUTE, migrating
from replaceme_core.ledger.tables import Base
from replaceme_core.settings import Settings

METADATA = Base.metadata

config = context.config
url = config.attributes.get(URL_ATTRIBUTE) or Settings().resolved_database_url


def render(kind: str, item: object, _: AutogenContext) -> str | Literal[False]:
    """Render plain types into new migrations, which must not change when the code does."""
    if isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if isinstance(item, Enum):
        return f"sa.String(length={item.length})"
    return False


if context.is_offline_mode():
    context.configure(url=url, target_metadata=METADATA, literal_binds=True, render_as_batch=url.startswith("sqlite"))
    with context.begin_transaction():
        context.run_migrations()
else:
    with migrating(url) as connection:
        context.configure(
            connection=connection,
            target_metadata=METADATA,
            # SQLite cannot alter a table in place: alembic then copies it
            render_as_batch=connection.dialect.name == "sqlite",
            compare_server_default=True,
            render_item=render,
        )
        with context.begin_transaction():
            context.run_migrations()
