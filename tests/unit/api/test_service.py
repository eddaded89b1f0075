"""The service as a whole: start, health, and the ids of requests."""

import json
import re
import sys
from pathlib import Path

import pytest
from sqlalchemy import select, text
from starlette.testclient import TestClient

from api.http import server
from api.main import create_app
from replaceme_core.errors import InvalidInput
from replaceme_core.families.layout import FAMILIES
from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.tables import JobRow
from replaceme_core.request.method import Method
from replaceme_core.settings import Settings
from replaceme_core.telemetry import Origin
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields
from tests.fixtures.jobs.ledger import Ledger

NO_JOB = "00000000-0000-4000-8000-000000000000"


def test_healthy_and_ready(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    reported = {"workers": {"cpu": 0, "gpu": 0}, "sandboxes": []}
    assert client.get("/ready").json() == {"status": "ok", "database": "ok", "broker": "ok", **reported}


def test_it_answers_in_the_process_of_a_client_and_may_be_started_again(apart: Settings) -> None:
    app = create_app(apart)
    assert TestClient(app).get("/ready").status_code == 200
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/ready").status_code == 200


def test_not_ready_without_all_migrations(apart: Settings, caplog: pytest.LogCaptureFixture) -> None:
    database = Database(apart.resolved_database_url)
    with database.session() as session:
        newest = session.scalar(text("SELECT version_num FROM alembic_version"))
    with TestClient(create_app(apart)) as client:
        for statement, words in (
            ("UPDATE alembic_version SET version_num = '9999'", None),  # after a rollback: a newer schema will do
            ("UPDATE alembic_version SET version_num = '0007'", "at migration 0007"),
            (f"UPDATE alembic_version SET version_num = '{newest}'", None),
            ("DROP TABLE workers", "lacks tables"),
            ("DROP TABLE alembic_version", "lacks tables"),
        ):
            with database.session() as session:
                session.execute(text(statement))
            caplog.clear()
            answer = client.get("/ready")
            if words is None:
                assert answer.status_code == 200
                continue
            assert_problem(answer, status=503, code="database_outdated")
            assert words in answer.text
            assert "must run the migrations" in answer.text
            (line,) = [record for record in caplog.records if record.name.startswith("replaceme_core")]
            assert "must run the migrations" in line.getMessage()
            assert line.exc_info is None
    database.close()


def test_a_database_without_tables_is_503_with_one_line(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'empty.sqlite3'}"})
    with TestClient(create_app(empty), raise_server_exceptions=False) as client:
        for method, path in (("GET", "/jobs"), ("GET", "/ready"), ("POST", "/jobs")):
            caplog.clear()
            response = client.request(method, path, json=SMALLEST if method == "POST" else None)
            problem = assert_problem(response, status=503, code="database_outdated")
            assert "migrations" in str(problem["detail"])
            assert len([record for record in caplog.records if "tables" in record.getMessage()]) == 1, path


def test_families(client: TestClient) -> None:
    listed = client.get("/families").json()
    assert listed["next_cursor"] is None
    rows = {row["model_type"]: row for row in listed["items"]}
    assert [name for name, row in rows.items() if row["supported"]] == sorted(FAMILIES)
    assert rows["llama"]["methods"] == [str(method) for method in Method]
    assert (rows["llama"]["structures"], rows["llama"]["reason"]) == (["full", "diagonal"], None)
    assert "do_layer_norm_before" in rows["opt"]["reason"]
    assert rows["gemma2"]["structures"] == ["diagonal"]
    assert "merge" not in rows["gemma2"]["methods"]
    assert (rows["bert"]["supported"], rows["bert"]["methods"]) == (False, [])


def test_the_documentation_loads_nothing_from_another_host(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert 'src="http' not in page.text
    assert 'href="http' not in page.text


def test_an_invalid_setting_stops_the_service(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"database_url": "nonsense"}))
    with pytest.raises(InvalidInput), TestClient(app):
        pass


def test_a_wrong_setting_ends_the_process_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["server"])
    monkeypatch.setenv("REPLACEME_LEASE_SECONDS", "abc")
    assert server.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: REPLACEME_LEASE_SECONDS: ")


def test_unknown_parameters_are_refused_on_every_route(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert len(paths) > 8
    for path, operations in paths.items():
        for method in operations:
            here = path.replace("{job_id}", NO_JOB)
            response = client.request(
                method, here, params={"dry_run": "true"}, json={} if method in ("post", "put", "patch") else None
            )
            assert fields(response) == {"dry_run": "true"}, (method, path)


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SENT = {"x-request-id": "build-17.a", "traceparent": TRACE}


def origin_of(database: Database, job_id: str) -> Origin:
    with database.session(read_only=True) as session:
        row = session.scalars(select(JobRow).where(JobRow.id == job_id)).one()
        return Origin(request_id=row.request_id, traceparent=row.traceparent)


def test_what_a_request_carries_is_returned(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("/health", "/jobs", "/nowhere", "/jobs?unknown=1", "/openapi.json"):
        answer = client.get(path, headers=SENT)
        assert (answer.headers["x-request-id"], answer.headers["traceparent"]) == (SENT["x-request-id"], TRACE)
    refused = client.get("/jobs", headers={**SENT, "host": "elsewhere.example"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (421, SENT["x-request-id"])
    refused = client.get("/jobs", headers={**SENT, "authorization": "Bearer wrong"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (401, SENT["x-request-id"])
    monkeypatch.setattr(reading, "page", lambda *_, **__: {}["a bug"])
    failed = client.get("/jobs", headers=SENT)
    assert (failed.status_code, failed.headers["x-request-id"]) == (500, SENT["x-request-id"])


def test_an_id_that_is_not_plain_is_replaced_by_one_of_its_own(client: TestClient) -> None:
    given: list[list[tuple[str, str]]] = [[], [("x-request-id", "a"), ("x-request-id", "b")]]
    given += [[("x-request-id", one), ("traceparent", "00-no-trace-01")] for one in ("two words", "x" * 65, "")]
    answers = [client.get("/health", headers=headers) for headers in given]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(given)
    assert all(re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"]) for answer in answers)
    assert not any("traceparent" in answer.headers for answer in answers)


def test_a_job_and_its_message_keep_the_ids(client: TestClient, settings: Settings, ledger: Ledger) -> None:
    job_id = client.post("/jobs", json=SMALLEST, headers=SENT).json()["id"]
    assert origin_of(ledger.database, job_id) == Origin(request_id="build-17.a", traceparent=TRACE)
    claim = ledger.claim(job_id)
    ledger.succeed(claim)
    assert claim.origin == Origin(request_id="build-17.a", traceparent=TRACE)
    retried = client.post(f"/jobs/{job_id}/retry", headers={"x-request-id": "again"}).json()["id"]
    assert origin_of(ledger.database, retried) == Origin(request_id="again")
    messages = [json.loads(path.read_text()) for path in Path(settings.broker_directory / "messages").iterdir()]
    headers = sorted((message["headers"]["request_id"], message["headers"].get("traceparent")) for message in messages)
    assert headers == [("again", None), ("build-17.a", TRACE)]
