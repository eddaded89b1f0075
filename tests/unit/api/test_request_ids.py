"""`X-Request-ID` and `traceparent`: honoured, returned with every answer, and kept with the job and its message."""

import json
from pathlib import Path

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from api.main import create_app
from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.tables import JobRow
from replaceme_core.settings import Settings
from replaceme_core.telemetry import Origin
from tests.fixtures.api.requests import SMALLEST
from tests.fixtures.jobs.ledger import claim_job, succeed

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SENT = {"x-request-id": "build-17.a", "traceparent": TRACE}


def origin_of(database: Database, job_id: str) -> Origin:
    with database.session(read_only=True) as session:
        row = session.scalars(select(JobRow).where(JobRow.id == job_id)).one()
        return Origin(request_id=row.request_id, traceparent=row.traceparent)


def test_what_a_request_carries_is_returned(client: TestClient) -> None:
    for path in ("/health", "/jobs", "/nowhere", "/jobs?unknown=1", "/openapi.json"):
        answer = client.get(path, headers=SENT)
        assert (answer.headers["x-request-id"], answer.headers["traceparent"]) == (SENT["x-request-id"], TRACE)
    refused = client.get("/jobs", headers={**SENT, "host": "elsewhere.example"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (421, SENT["x-request-id"])
    refused = client.get("/jobs", headers={**SENT, "authorization": "Bearer wrong"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (401, SENT["x-request-id"])


def test_a_mistake_of_the_service_can_be_found_in_its_log(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(reading, "page", fail)
    answer = client.get("/jobs", headers=SENT)
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, SENT["x-request-id"])


@pytest.mark.parametrize("given", ["two words", "x" * 65, "", "a;b", '{"a":1}'])
def test_an_id_that_is_not_plain_is_replaced(client: TestClient, given: str) -> None:
    answer = client.get("/health", headers={"x-request-id": given, "traceparent": "00-no-trace-01"})
    assert answer.headers["x-request-id"] != given
    assert len(answer.headers["x-request-id"]) == 32
    assert "traceparent" not in answer.headers


def test_each_request_has_an_id_of_its_own(client: TestClient) -> None:
    ids = {client.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    two = client.get("/health", headers=[("x-request-id", "a"), ("x-request-id", "b")])
    assert two.headers["x-request-id"] not in ("a", "b", "a, b")


def test_a_job_and_its_message_keep_the_ids(settings: Settings, sqlite_database: Database) -> None:
    with TestClient(create_app(settings)) as client:
        job_id = client.post("/jobs", json=SMALLEST, headers=SENT).json()["id"]
        assert origin_of(sqlite_database, job_id) == Origin(request_id="build-17.a", traceparent=TRACE)
        with sqlite_database.session() as session:
            claim = claim_job(session, job_id)
            succeed(session, claim)
        assert claim.origin == Origin(request_id="build-17.a", traceparent=TRACE)
        retried = client.post(f"/jobs/{job_id}/retry", headers={"x-request-id": "again"}).json()["id"]
        assert origin_of(sqlite_database, retried) == Origin(request_id="again")
    messages = [json.loads(path.read_text()) for path in Path(settings.broker_directory / "messages").iterdir()]
    headers = sorted((message["headers"]["request_id"], message["headers"].get("traceparent")) for message in messages)
    assert headers == [("again", None), ("build-17.a", TRACE)]
