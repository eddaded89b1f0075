"""The ledger on both databases, and its webhooks."""

import pytest

from replaceme_core.ledger.database import Database
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.webhooks.outbox import Outbox


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)
