"""What the service knows of its workers."""

from pathlib import Path

import pytest

from api.http.callers import WITHOUT_KEY
from api.routes.planning import Planning
from replaceme_core.ledger.database import Database
from replaceme_core.request.spec import CompressionRequest
from replaceme_core.settings import Settings
from tests.fixtures.models.headers import SMOLLM2, HeaderHub

TERABYTE = 2**40


def test_downloads_that_can_be_removed_are_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the embedded default, with a Hub elsewhere."""
    monkeypatch.delenv("REPLACEME_DATABASE_URL", raising=False)
    monkeypatch.delenv("REPLACEME_BROKER_URL", raising=False)
    settings = Settings(data=tmp_path, hub="https://hub.example")
    database = Database(settings.resolved_database_url)
    request = CompressionRequest.model_validate({"model": "org/name", "ratio": 0.25, "calibration": "builtin:general"})

    def disk() -> int:
        planning = Planning(settings=settings, database=database, hub=HeaderHub(size=SMOLLM2))
        found = planning.planner(request, caller=WITHOUT_KEY, namespaces=None).machine.disk_bytes
        assert found is not None
        return found

    before = disk()
    model = settings.hub_cache / "models--org--name"
    (model / "blobs").mkdir(parents=True)
    for name in ("a" * 64, f"{'b' * 64}.incomplete"):
        with (model / "blobs" / name).open("wb") as file:
            file.truncate(TERABYTE)
    (model / "snapshots" / "c").mkdir(parents=True)
    (model / "snapshots" / "c" / "model.safetensors").symlink_to(model / "blobs" / ("a" * 64))
    assert disk() - before == pytest.approx(2 * TERABYTE, rel=0.1), "without what other processes write meanwhile"
    database.close()
