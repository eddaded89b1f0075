"""The ledger and its webhooks: on SQLite, and on both databases where their SQL or their locks differ."""

from collections.abc import Iterator

import pytest
from sqlalchemy import delete

from replaceme_core.ledger.database import Database
from replaceme_core.ledger.tables import Base
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.webhooks.outbox import Outbox


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[Database]:
    """That of the module, emptied: a new one takes most of a second."""
    database = Database(postgres_url)
    with database.session() as session:
        for table in reversed(Base.metadata.sorted_tables):
            if table.name != "event_feed":  # has one row, which the migrations wrote
                session.execute(delete(table))
    yield database
    database.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    """The ledger on SQLite and on PostgreSQL."""
    found: Database = request.getfixturevalue(f"{request.param}_database")
    return found


@pytest.fixture
def ledger_on_both(database: Database) -> Ledger:
    return Ledger(database)


@pytest.fixture
def outbox(sqlite_database: Database) -> Outbox:
    return Outbox(sqlite_database)
