"""Workers and queues, and jobs side by side."""

import re

from starlette.testclient import TestClient

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import WorkerReport
from replaceme_core.ledger.watching import Workers
from replaceme_core.runner.messages import Measured, Stage
from replaceme_core.runner.sandbox import SandboxMode
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import hold_key
from tests.fixtures.api.pages import sign_in, text_of
from tests.fixtures.api.requests import SMALLEST
from tests.fixtures.jobs.ledger import claim_job, succeed


def report(name: str, process: int, *kinds: WorkerKind) -> WorkerReport:
    return WorkerReport(
        name=name, host="h", kinds=kinds, device="cpu", sandbox=next(iter(SandboxMode)), processes=(process,)
    )


def cells(page_text: str) -> list[str]:
    """The rows of all tables, as text."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page_text, flags=re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in rows]


def test_without_workers_the_page_says_what_to_do(client: TestClient) -> None:
    text = text_of(client.get("/ui/workers"))
    assert "No worker is alive: jobs wait. Start one" in text
    assert "No worker has reported itself" in text


def test_queues_with_their_load(client: TestClient, settings: Settings, sqlite_database: Database) -> None:
    mine, other = (hold_key(client, settings, owner=name, scopes=["jobs:read", "jobs:write"]) for name in ("a", "b"))
    running, _, theirs = (one.post("/jobs", json=SMALLEST).json()["id"] for one in (mine, mine, other))
    other.post("/jobs", json={**SMALLEST, "compute": {"device": "cuda"}})
    with sqlite_database.session() as session:
        workers = Workers(session)
        workers.report(report("w1", 1, WorkerKind.CPU), alive_seconds=60)
        workers.report(report("w2", 2, WorkerKind.CPU, WorkerKind.GPU), alive_seconds=60)
        workers.report(report("w3", 3, WorkerKind.CPU), alive_seconds=-1)
        claim_job(session, running, worker="h:1")
        claim_job(session, theirs, worker="h:2")
    sign_in(client, mine.text)
    for path in ("/ui/workers", "/ui/workers/live"):
        page = client.get(path)
        rows = cells(page.text)
        assert "any worker 1 1 2 100 % (2 of 2 busy)" in rows, rows
        assert "cpu workers 0 0 2 100 % (2 of 2 busy)" in rows
        assert "gpu workers 1 0 1 100 % (1 of 1 busy)" in rows
        assert any(row.startswith("w1 ● busy cpu") and row.endswith(running[:8]) for row in rows)
        assert any(row.startswith("w3 ✕ lost") for row in rows)
        assert theirs not in page.text


def test_jobs_side_by_side(client: TestClient, sqlite_database: Database) -> None:
    ids = [client.post("/jobs", json={**SMALLEST, "ratio": ratio}).json()["id"] for ratio in (0.25, 0.5, 0.1)]
    with sqlite_database.session() as session:
        for job, after in zip(ids[:2], (15.5, 31.25), strict=True):
            claim = claim_job(session, job)
            sides = (("before", 12.5), ("after", after))
            attempts.add_metrics(
                session,
                claim,
                [
                    Measured(stage=Stage.EVALUATE, name=f"{side}.perplexity", value=value, unit="ratio")
                    for side, value in sides
                ],
            )
            succeed(session, claim)
    page = client.get("/ui/compare", params={"id": [*ids, ids[0]]})
    rows = cells(page.text)
    assert "Status succeeded succeeded queued" in rows
    assert "Removes 0.25 of the blocks 0.5 of the blocks 0.1 of the blocks" in rows
    assert "Removed blocks 12-13 12-13 –" in rows
    assert "Perplexity 12.50 → 15.50 +24.0 % 12.50 → 31.25 +150.0 % –" in rows


def test_another_number_of_jobs_is_explained(client: TestClient) -> None:
    ids = [client.post("/jobs", json=SMALLEST).json()["id"] for _ in range(6)]
    for given, shown in ((0, "No job was chosen"), (1, "One job was"), (6, "6 jobs were chosen")):
        page = client.get("/ui/compare", params={"id": ids[:given]})
        assert page.status_code == 422
        assert shown in text_of(page)
        assert "2 to 5 can be compared" in text_of(page)


def test_the_jobs_of_another_owner_are_not_compared(client: TestClient, settings: Settings) -> None:
    alice, bob = (hold_key(client, settings, owner=name, scopes=["jobs:read", "jobs:write"]) for name in ("a", "b"))
    ids = [one.post("/jobs", json=SMALLEST).json()["id"] for one in (alice, bob)]
    sign_in(client, bob.text)
    page = client.get("/ui/compare", params={"id": ids})
    assert page.status_code == 404
    assert "0.25" not in page.text
