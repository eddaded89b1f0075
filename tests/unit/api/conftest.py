"""The service on SQLite, the filesystem broker and a directory as the Hub; no other process runs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.main import create_app
from replaceme_core.settings import Settings
from tests.fixtures.api.requests import put_dataset, put_model
from tests.fixtures.evaluation.local_tasks import write_tasks


def settings_in(place: Path, sqlite_url: str) -> Settings:
    """With a directory hub that has the model `org/name` of 30 blocks and the data set `org/data`."""
    put_model(place / "hub", "org/name", blocks=30)
    put_dataset(place / "hub", "org/data")
    texts = place / "texts"
    texts.mkdir()
    (texts / "some.txt").write_text("some text")
    return Settings(
        _env_file=None,
        data=place / "data",
        database_url=sqlite_url,
        broker_url="filesystem://",
        hub=f"dir:{place / 'hub'}",
        allowed_hosts=("testserver",),
        calibration_root=texts,
        tasks_directory=write_tasks(place / "tasks"),
    )


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str) -> Settings:
    return settings_in(tmp_path, sqlite_url)


@pytest.fixture
def hub_root(settings: Settings, tmp_path: Path) -> Path:
    """The directory of the Hub."""
    return tmp_path / "hub"


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def shared(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One service for all tests of a module that leave its settings alone and do not count its jobs."""
    place = tmp_path_factory.mktemp("service")
    stored = shutil.copyfile(sqlite_template, place / "ledger.sqlite3")
    settings = settings_in(place, f"sqlite:///{stored}")
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client
