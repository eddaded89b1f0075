"""The list of jobs as a page, with 10,000 jobs in PostgreSQL."""

import re
import time
from pathlib import Path

from starlette.testclient import TestClient

from api.main import create_app
from benchmarks import rows
from replaceme_core.ledger.database import Database
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import hold_key
from tests.fixtures.api.pages import sign_in

JOBS = 10_000
MOST_SECONDS = 0.2
REPEATS = 7


def best_of(client: TestClient, path: str) -> float:
    """The seconds of the quickest of some requests: other processes on the machine only add time."""
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        page = client.get(path)
        took.append(time.perf_counter() - began)
        assert page.status_code == 200
        assert 'href="/ui/jobs/00000000-' in page.text
    return min(took)


def test_the_first_page_comes_within_200_milliseconds(postgres_url: str, tmp_path: Path) -> None:
    database = Database(postgres_url)
    rows.fill(database, JOBS)
    database.close()
    settings = Settings(
        _env_file=None,
        data=tmp_path / "data",
        database_url=postgres_url,
        broker_url="filesystem://",
        hub=f"dir:{tmp_path / 'hub'}",
        allowed_hosts=("testserver",),
    )
    with TestClient(create_app(settings)) as client:
        sign_in(client, hold_key(client, settings, owner="owner-0", scopes=["jobs:read"]).text)
        first = client.get("/ui/jobs")
        older = re.search(r'rel="next" href="([^"]+)"', first.text)
        assert older is not None
        paths = ("/ui/jobs", "/ui/job-rows", "/ui/jobs?status=queued", "/ui/jobs?label=run%3D8", older[1])
        took = {path: best_of(client, path.replace("&amp;", "&")) for path in paths}
    assert all(seconds < MOST_SECONDS for seconds in took.values()), took
