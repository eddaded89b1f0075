"""The service as a whole: start, health, and the ids of requests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select, text
from starlette.testclient import TestClient

from api.bodies import JobRequest
from api.main import create_app
from replaceme_core.errors import AccessDenied, InvalidInput
from replaceme_core.families.table import FAMILIES
from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database, make_engine
from replaceme_core.ledger.tables import JobRow
from replaceme_core.request.method import Method
from replaceme_core.settings import Settings
from replaceme_core.telemetry import Origin
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields
from tests.fixtures.jobs.ledger import claim_job, succeed

NO_JOB = "00000000-0000-4000-8000-000000000000"


def test_healthy_and_ready(shared: TestClient) -> None:
    assert shared.get("/health").json() == {"status": "ok"}
    reported = {"workers": {"cpu": 0, "gpu": 0}, "sandboxes": []}
    assert shared.get("/ready").json() == {"status": "ok", "database": "ok", "broker": "ok", **reported}


def test_healthy_but_not_ready_without_a_database(settings: Settings, tmp_path: Path) -> None:
    broken = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}"})
    with TestClient(create_app(broken), raise_server_exceptions=False) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/families").status_code == 200
        for path in ("/ready", "/jobs"):
            response = client.get(path)
            assert_problem(response, status=503, code="database_unreachable")
            assert int(response.headers["retry-after"]) > 0


def execute(url: str, statement: str) -> None:
    engine = make_engine(url, pooled=False)
    with engine.begin() as connection:
        connection.execute(text(statement))


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DROP TABLE alembic_version", "lacks tables"),
        ("UPDATE alembic_version SET version_num = '0007'", "at migration 0007"),
        ("DROP TABLE workers", "lacks tables"),
    ],
)
def test_not_ready_without_all_migrations(
    client: TestClient, sqlite_url: str, statement: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.get("/ready").status_code == 200
    execute(sqlite_url, statement)
    caplog.clear()
    answer = client.get("/ready")
    assert_problem(answer, status=503, code="database_outdated")
    assert words in answer.text
    assert "must run the migrations" in answer.text
    (line,) = [record for record in caplog.records if record.name.startswith("replaceme_core")]
    assert "must run the migrations" in line.getMessage()
    assert line.exc_info is None


def test_ready_on_the_database_of_a_later_release(client: TestClient, sqlite_url: str) -> None:
    """After a rollback: the release before works on the new schema."""
    execute(sqlite_url, "UPDATE alembic_version SET version_num = '9999'")
    assert client.get("/ready").status_code == 200


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


def test_not_ready_without_a_broker(settings: Settings) -> None:
    away = settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    with TestClient(create_app(away)) as client:
        assert_problem(client.get("/ready"), status=503, code="queue_unreachable")


def test_families(shared: TestClient) -> None:
    listed = shared.get("/families").json()
    assert listed["next_cursor"] is None
    rows = {row["model_type"]: row for row in listed["items"]}
    assert [name for name, row in rows.items() if row["supported"]] == sorted(FAMILIES)
    assert rows["llama"] == {
        "model_type": "llama",
        "supported": True,
        "methods": [str(method) for method in Method],
        "structures": ["full", "diagonal"],
        "reason": None,
    }
    assert "do_layer_norm_before" in rows["opt"]["reason"]
    assert rows["gemma2"]["structures"] == ["diagonal"]
    assert "merge" not in rows["gemma2"]["methods"]
    refused = [row for row in listed["items"] if not row["supported"]]
    assert {"jamba", "t5", "llava", "gemma3"} <= {row["model_type"] for row in refused}
    assert all(row["methods"] == [] and row["model_type"] in row["reason"] for row in refused)


def test_the_documentation_loads_nothing_from_another_host(shared: TestClient) -> None:
    for path in ("/docs", "/redoc"):
        page = shared.get(path)
        assert page.status_code == 200
        assert 'src="http' not in page.text
        assert 'href="http' not in page.text


def test_the_openapi_examples_are_requests(shared: TestClient) -> None:
    content = shared.get("/openapi.json").json()["paths"]["/jobs"]["post"]["requestBody"]["content"]
    content = content["application/json"]
    examples = content.get("examples") or content["schema"]["examples"]
    requests = [JobRequest.model_validate(example) for example in examples]
    assert [len(one.calibration.mix) for one in requests] == [1, 3, 1, 1]
    assert [one.searches for one in requests] == [False, False, True, False]


@pytest.mark.parametrize("change", [{"database_url": "nonsense"}, {"hub": "https://hub.test", "hub_read_token": "a b"}])
def test_invalid_settings_stop_the_service(settings: Settings, change: dict[str, str]) -> None:
    app = create_app(Settings(_env_file=None, **{**settings.model_dump(exclude_none=True), **change}))
    with pytest.raises((InvalidInput, AccessDenied)), TestClient(app):
        pass


def test_importing_the_application_connects_to_nothing(tmp_path: Path) -> None:
    code = "import api.main, sys; assert not {'torch', 'transformers'} & sys.modules.keys(); print(api.main.app.title)"
    environment = {**os.environ, "REPLACEME_DATABASE_URL": "nonsense", "REPLACEME_BROKER_URL": "nonsense"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "ReplaceMe\n"
    assert list(tmp_path.iterdir()) == []


def test_unknown_parameters_are_refused_on_every_route(shared: TestClient) -> None:
    paths = shared.get("/openapi.json").json()["paths"]
    assert len(paths) > 8
    for path, operations in paths.items():
        for method in operations:
            here = path.replace("{job_id}", NO_JOB)
            response = shared.request(
                method, here, params={"dry_run": "true"}, json={} if method in ("post", "put", "patch") else None
            )
            assert fields(response) == {"dry_run": "true"}, (method, path)


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SENT = {"x-request-id": "build-17.a", "traceparent": TRACE}


def origin_of(database: Database, job_id: str) -> Origin:
    with database.session(read_only=True) as session:
        row = session.scalars(select(JobRow).where(JobRow.id == job_id)).one()
        return Origin(request_id=row.request_id, traceparent=row.traceparent)


def test_what_a_request_carries_is_returned(shared: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("/health", "/jobs", "/nowhere", "/jobs?unknown=1", "/openapi.json"):
        answer = shared.get(path, headers=SENT)
        assert (answer.headers["x-request-id"], answer.headers["traceparent"]) == (SENT["x-request-id"], TRACE)
    refused = shared.get("/jobs", headers={**SENT, "host": "elsewhere.example"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (421, SENT["x-request-id"])
    refused = shared.get("/jobs", headers={**SENT, "authorization": "Bearer wrong"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (401, SENT["x-request-id"])
    monkeypatch.setattr(reading, "page", lambda *_, **__: {}["a bug"])
    failed = shared.get("/jobs", headers=SENT)
    assert (failed.status_code, failed.headers["x-request-id"]) == (500, SENT["x-request-id"])


@pytest.mark.parametrize("given", ["two words", "x" * 65, ""])
def test_an_id_that_is_not_plain_is_replaced(shared: TestClient, given: str) -> None:
    answer = shared.get("/health", headers={"x-request-id": given, "traceparent": "00-no-trace-01"})
    assert answer.headers["x-request-id"] != given
    assert len(answer.headers["x-request-id"]) == 32
    assert "traceparent" not in answer.headers


def test_each_request_has_an_id_of_its_own(shared: TestClient) -> None:
    ids = {shared.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    two = shared.get("/health", headers=[("x-request-id", "a"), ("x-request-id", "b")])
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
