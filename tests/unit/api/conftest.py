"""The service on SQLite, the filesystem broker and a directory as the Hub; no other process runs.

One application serves all tests here, since it takes longer to make one than to ask it. Each test begins with an empty
database and without messages; what it changes in the Hub, it changes back. A test that breaks more has `apart`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api import monitoring
from api.main import create_app
from replaceme_core.ledger.database import Database
from replaceme_core.settings import Settings
from tests.fixtures.api.service import Service, settings_in


@pytest.fixture(scope="session")
def service(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = settings_in(tmp_path_factory.mktemp("service"), sqlite_template)
    database = Database(settings.resolved_database_url)
    with (
        pytest.MonkeyPatch.context() as patch,
        TestClient(create_app(settings), raise_server_exceptions=False) as client,
    ):
        patch.setattr(monitoring, "CACHE_SECONDS", 0.0)  # figures of one test are not those of the next
        yield Service(settings=settings, client=client, database=database)
    database.close()


@pytest.fixture
def settings(service: Service) -> Settings:
    service.reset()
    return service.settings


@pytest.fixture
def client(service: Service, settings: Settings) -> TestClient:
    return service.client


@pytest.fixture
def sqlite_database(service: Service, settings: Settings) -> Database:
    """The database of the service."""
    return service.database


@pytest.fixture
def hub_root(service: Service) -> Path:
    return service.hub_root


@pytest.fixture
def apart(sqlite_template: Path, tmp_path: Path) -> Settings:
    """For an application that no other test has."""
    return settings_in(tmp_path, sqlite_template)
