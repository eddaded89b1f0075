"""Events, metrics and the report of a job over HTTP."""

import pytest
from starlette.testclient import TestClient

from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database
from replaceme_core.runner.messages import Measured, Stage
from tests.fixtures.api.requests import SMALLEST, assert_problem
from tests.fixtures.jobs.ledger import claim_job


@pytest.fixture
def finished(client: TestClient, sqlite_database: Database) -> str:
    """The path of a succeeded job."""
    job_id: str = client.post("/jobs", json=SMALLEST).json()["id"]
    with sqlite_database.session() as session:
        claim = claim_job(session, job_id, worker="test", lease_seconds=60)
        attempts.record_progress(session, claim, stage=Stage.SELECT, overall=0.5, fraction=0.25, eta_seconds=60.0)
        attempts.add_metrics(
            session,
            claim,
            [
                Measured(stage=Stage.SELECT, name="distance", value=0.5, unit="1", block=12, candidate="12-19"),
                Measured(stage=Stage.SELECT, name="seconds", value=2.0, unit="s"),
            ],
        )
        attempts.succeed(
            session,
            claim,
            repo_id="local/result",
            revision="a" * 40,
            removed_blocks=[12, 13],
            kept_blocks=[*range(12), *range(14, 30)],
            report={"versions": {"torch": "2"}},
        )
    return f"/jobs/{job_id}"


def test_a_finished_job_has_its_result(client: TestClient, finished: str) -> None:
    job = client.get(finished).json()
    assert job["status"] == "succeeded"
    assert job["attempt"] == 1
    assert job["result"]["removed_blocks"] == [12, 13]
    assert job["result"].keys() == {"repo_id", "revision", "removed_blocks", "kept_blocks", "warnings"}
    assert job["started_at"] <= job["finished_at"]


def test_events_are_listed_in_order_and_in_pages(client: TestClient, finished: str) -> None:
    whole = client.get(f"{finished}/events").json()
    assert [event["type"] for event in whole["items"]] == ["created", "claimed", "stage", "succeeded"]
    assert [event["seq"] for event in whole["items"]] == [1, 2, 3, 4]
    assert whole["items"][0].keys() == {"seq", "type", "at", "attempt", "data"}
    page = client.get(f"{finished}/events", params={"limit": 2}).json()
    rest = client.get(f"{finished}/events", params={"after": page["next_cursor"]}).json()
    assert page["items"] + rest["items"] == whole["items"]
    assert rest["next_cursor"] is None


def test_metrics(client: TestClient, finished: str) -> None:
    listed = client.get(f"{finished}/metrics").json()
    assert listed["next_cursor"] is None
    assert listed["items"][0].keys() == {"name", "stage", "block", "candidate", "value", "unit", "at"}
    assert [(row["name"], row["block"], row["value"]) for row in listed["items"]] == [
        ("distance", 12, 0.5),
        ("seconds", None, 2.0),
    ]


def test_only_a_succeeded_job_has_a_report(client: TestClient, finished: str) -> None:
    assert client.get(f"{finished}/report").json()["versions"] == {"torch": "2"}
    queued = client.post("/jobs", json=SMALLEST).headers["location"]
    assert_problem(client.get(f"{queued}/report"), status=404, code="not_found")
