"""The service on SQLite, the filesystem broker and a directory as the Hub; no other process runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.main import create_app
from replaceme_core.settings import Settings
from tests.fixtures.api.requests import put_dataset, put_model
from tests.fixtures.evaluation.local_tasks import write_tasks


@pytest.fixture
def hub_root(tmp_path: Path) -> Path:
    """A directory hub with the model `org/name` of 30 blocks and the data set `org/data`."""
    root = tmp_path / "hub"
    put_model(root, "org/name", blocks=30)
    put_dataset(root, "org/data")
    return root


@pytest.fixture
def calibration_root(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    root.mkdir()
    (root / "some.txt").write_text("some text")
    return root


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str, hub_root: Path, calibration_root: Path) -> Settings:
    return Settings(
        _env_file=None,
        data=tmp_path / "data",
        database_url=sqlite_url,
        broker_url="filesystem://",
        hub=f"dir:{hub_root}",
        allowed_hosts=("testserver",),
        calibration_root=calibration_root,
        tasks_directory=write_tasks(tmp_path / "tasks"),
    )


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client
