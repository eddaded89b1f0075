"""Jobs: submit, get, cancel, requests that are sent again, and what a job has done: events, metrics, report."""

import json
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest
from httpx2 import Response
from sqlalchemy import text
from starlette.testclient import TestClient

from api.main import create_app
from api.routes.reading import LONGEST_AGE_SECONDS
from benchmarks.harness.processes import wait_until
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.tables import IdempotencyKeyRow
from replaceme_core.request.method import MethodSpec
from replaceme_core.runner.messages import Measured, Stage
from replaceme_core.settings import RUN_JOB_TASK, Settings
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields, put_model
from tests.fixtures.jobs.ledger import Ledger, claim_job

JOB_FIELDS = {"id", "status", "route", "stage", "progress", "attempt", "labels", "spec"}
JOB_FIELDS |= {"created_at", "started_at", "finished_at"}
JOB_FIELDS |= {"error", "result", "summary", "gate", "retry_of", "retried_as", "links"}


def submit(client: TestClient, **changes: object) -> dict[str, object]:
    response = client.post("/jobs", json={**SMALLEST, **changes})
    assert response.status_code == 202, response.text
    body: dict[str, object] = response.json()
    return body


def test_a_submitted_job_has_the_documented_fields(client: TestClient) -> None:
    response = client.post("/jobs", json={**SMALLEST, "labels": {"team": "a"}})
    assert response.status_code == 202
    job = response.json()
    here = f"/jobs/{UUID(job['id'])}"
    assert job.keys() == JOB_FIELDS | {"notice"}
    assert response.headers["location"] == here
    assert job["status"] == "queued"
    assert job["progress"] == {"overall": 0.0, "stage": 0.0, "eta_seconds": None, "eta_error_seconds": None}
    assert job["labels"] == {"team": "a"}
    assert job["attempt"] == 0
    assert [job[name] for name in ("stage", "started_at", "finished_at", "error", "result")] == [None] * 5
    assert datetime.fromisoformat(job["created_at"]).tzinfo is not None
    assert job["links"] == {
        "self": here,
        **{name: f"{here}/{name}" for name in ("cancel", "retry", "events", "metrics", "logs", "report")},
    }
    assert job.pop("notice") is None
    whole = client.get(here).json()
    assert {name: whole[name] for name in JOB_FIELDS} == job
    assert whole["queue"] == {"position": 1, "estimated_start_at": None}
    assert whole["attempts"] == []
    assert {stage["name"] for stage in whole["stages"]} == set(Stage)


def test_the_spec_of_a_job_is_resolved(client: TestClient) -> None:
    spec = submit(client, calibration={"dataset": "org/data", "samples": 64})["spec"]
    assert isinstance(spec, dict)
    assert len(spec["model"]["revision"]) == len(spec["calibration"]["revision"]) == 40
    assert spec["calibration"]["split"] == "train"
    assert spec["method"] == MethodSpec().model_dump(mode="json")
    assert spec["output"]["private"] is True
    assert spec["output"]["repo_id"].startswith("local/name-22of30-")


def test_limits_are_filled_in(client: TestClient, settings: Settings) -> None:
    def limits(spec: object) -> list[object]:
        assert isinstance(spec, dict)
        return [spec[name] for name in ("max_queue_seconds", "max_runtime_seconds")]

    assert limits(submit(client)["spec"]) == [None, settings.max_runtime_seconds]
    job = submit(client, max_queue_seconds=60, max_runtime_seconds=90.5)
    assert limits(job["spec"]) == limits(client.get(f"/jobs/{job['id']}").json()["spec"]) == [60, 90.5]
    strict = settings.model_copy(update={"max_queue_seconds": 30.0})
    with TestClient(create_app(strict)) as other:
        assert limits(submit(other, max_runtime_seconds=7)["spec"]) == [30, 7]


def test_a_submitted_job_is_enqueued(client: TestClient, settings: Settings) -> None:
    job = submit(client)
    (message,) = (settings.broker_directory / "messages").glob("*.msg")
    assert json.loads(message.read_text())["headers"]["task"] == RUN_JOB_TASK
    assert json.loads(message.read_text())["headers"]["argsrepr"] == repr([job["id"]])


def test_a_job_is_accepted_while_the_broker_is_down(client: TestClient, settings: Settings) -> None:
    settings.broker_directory.parent.mkdir(exist_ok=True)
    settings.broker_directory.write_text("a file in place of the directory")
    job = submit(client)
    assert client.get(f"/jobs/{job['id']}").json()["status"] == "queued"
    assert_problem(client.get("/ready"), status=503, code="queue_unreachable")


def test_the_hub_is_contacted_before_a_transaction_begins(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from replaceme_core.hub.directory import DirectoryHub

    blocked = Database(settings.resolved_database_url)

    def resolve(self: DirectoryHub, *arguments: object, **options: object) -> object:
        with blocked.session() as session:  # blocks forever if the request already holds the write lock
            session.execute(text("SELECT 1"))
        return original(self, *arguments, **options)  # type: ignore[arg-type]

    original = DirectoryHub.resolve
    monkeypatch.setattr(DirectoryHub, "resolve", resolve)
    with TestClient(create_app(settings)) as client:
        submit(client)
    blocked.close()


@pytest.mark.parametrize("job_id", ["00000000-0000-4000-8000-000000000000", "%00", "a" * 5000, "%ff"])
def test_an_unknown_job_is_404(shared: TestClient, job_id: str) -> None:
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/events"), ("GET", "/metrics"), ("GET", "/report")):
        assert_problem(shared.request(method, f"/jobs/{job_id}{path}"), status=404, code="job_not_found")


def test_a_queued_job_has_a_queue_position(client: TestClient, sqlite_database: Database) -> None:
    first, second, urgent = submit(client), submit(client), submit(client, priority=9)

    def queue_of(job: dict[str, object]) -> object:
        return client.get(f"/jobs/{job['id']}").json()["queue"]

    assert queue_of(second) == {"position": 3, "estimated_start_at": None}
    with sqlite_database.session() as session:
        claim = attempts.claim_next(session, worker="test", lease_seconds=60)
        assert claim is not None
        assert claim.job_id == urgent["id"]
        attempts.succeed(
            session, claim, repo_id="a/b", revision="c" * 40, removed_blocks=[1], kept_blocks=[0], report={}
        )
    assert queue_of(urgent) is None

    def is_second() -> bool:
        queue = queue_of(second)
        return isinstance(queue, dict) and queue["position"] == 2

    wait_until(is_second, seconds=2 * LONGEST_AGE_SECONDS, what="a refresh of the queue positions")
    queue = queue_of(second)
    assert isinstance(queue, dict)
    assert datetime.fromisoformat(queue["estimated_start_at"]).tzinfo is not None
    client.post(f"/jobs/{first['id']}/cancel")
    assert queue_of(first) is None
    assert "queue" not in client.get("/jobs").json()["items"][0]


def test_jobs_are_listed_newest_first_in_pages(client: TestClient) -> None:
    ids = [submit(client)["id"] for _ in range(5)]
    seen, cursor = [], None
    while True:
        query = {"limit": "2", **({"cursor": cursor} if cursor else {})}
        page = client.get("/jobs", params=query).json()
        assert page.keys() == {"items", "next_cursor"}
        seen += [job["id"] for job in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]


def test_jobs_are_listed_by_status_and_label(client: TestClient) -> None:
    first = submit(client, labels={"team": "a", "run": "1"})["id"]
    second = submit(client, labels={"team": "a", "run": "2"})["id"]
    client.post(f"/jobs/{first}/cancel")

    def ids(query: str) -> list[str]:
        return [job["id"] for job in client.get(f"/jobs?{query}").json()["items"]]

    assert ids("status=cancelled") == [first]
    assert ids("label=team=a") == ids("label=team:a") == [second, first]
    assert ids("label=team=a&label=run:2") == [second]
    assert ids("label=team=b") == []
    assert ids("status=queued&label=run=1") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *(("limit=501", "limit"), ("limit=x", "limit"), ("limit=", "limit"), (f"limit={'9' * 5000}", "limit")),
        *(("cursor=x", "cursor"), ("cursor=%00", "cursor"), ("status=queued&status=QUEUED", "status.1")),
        *(("label=team", "label"), ("label=a=%00", "label"), ("label=team=a&label=team=b", "label")),
        *(("label=%ff=a", "label"), ("limit=1&x=%ff", "x")),
    ],
)
def test_query_parameters_of_the_list_are_checked(shared: TestClient, query: str, field: str) -> None:
    assert fields(shared.get(f"/jobs?{query}")).keys() == {field}


def test_a_job_is_cancelled_by_its_state(client: TestClient, sqlite_database: Database) -> None:
    """At once while it is queued, soon while it runs, and not any more once it has ended."""
    queued, running = (str(submit(client)["id"]) for _ in range(2))
    ledger = Ledger(sqlite_database)
    claim = ledger.claim(running)
    for job_id, status, state in ((queued, 200, "cancelled"), (running, 202, "running")) * 2:
        response = client.post(f"/jobs/{job_id}/cancel")
        assert (response.status_code, response.json()["status"]) == (status, state)
    assert client.get(f"/jobs/{queued}").json()["finished_at"]
    with sqlite_database.session() as session:
        attempts.fail(session, claim, code="out_of_memory", message="too big")
    assert_problem(client.post(f"/jobs/{running}/cancel"), status=409, code="stale_transition")
    assert client.get(f"/jobs/{running}").json()["error"] == {"code": "out_of_memory", "message": "too big"}


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"model": "org/none"}, "model", "unknown_repository"),
        ({"model": "org/strange"}, "model", "unsupported_family"),
        ({"ratio": None, "drop": [1, 30]}, "drop", "invalid_input"),
        ({"calibration": "file:none.txt"}, "calibration", "invalid_input"),
        ({"calibration": ["builtin:code", "org/none"]}, "calibration.sources.1.dataset", "unknown_repository"),
        ({"calibration": {"sources": ["builtin:code", "data"]}}, "calibration.sources.1", "invalid_input"),
        (
            {"calibration": ["builtin:code", {"self_generated": True, "share": 2}]},
            "calibration.sources.1.share",
            "invalid_input",
        ),
        ({"output": "Org/Name"}, "output.repo_id", "invalid_input"),
    ],
)
def test_impossible_requests_are_refused(
    client: TestClient, hub_root: Path, changes: dict[str, object], field: str, code: str
) -> None:
    put_model(hub_root, "org/strange", model_type="gpt9")
    assert fields(client.post("/jobs", json={**SMALLEST, **changes}), code=code).keys() == {field}
    assert client.get("/jobs").json()["items"] == []


def test_an_unreachable_hub_is_503(client: TestClient, hub_root: Path) -> None:
    hub_root.rename(hub_root.with_name("moved"))
    response = client.post("/jobs", json=SMALLEST)
    assert_problem(response, status=503, code="hub_unreachable")
    assert int(response.headers["retry-after"]) > 0


def test_the_device_selects_the_worker_kind(client: TestClient, settings: Settings) -> None:
    assert submit(client)["route"] is None
    assert submit(client, compute={"device": "cuda"})["route"] == "gpu"
    for_gpus = settings.model_copy(update={"default_worker_kind": WorkerKind.GPU})
    with TestClient(create_app(for_gpus)) as other:
        job = submit(other)
        assert job["route"] == "gpu"
        assert other.get(f"/jobs/{job['id']}").json()["route"] == "gpu"
        assert other.get("/jobs").json()["items"][0]["route"] == "gpu"
        assert submit(other, compute={"device": "cpu"})["route"] == "cpu"
    messages = settings.broker_directory / "messages"
    queues = sorted(path.name.split(".")[-2] for path in messages.iterdir())
    assert queues == ["cpu", "gpu", "gpu", "replaceme"]


def test_a_job_that_no_worker_can_run_is_refused(settings: Settings) -> None:
    without_gpus = settings.model_copy(update={"worker_kinds": (WorkerKind.CPU,)})
    with TestClient(create_app(without_gpus)) as client:
        response = client.post("/jobs", json={**SMALLEST, "compute": {"device": "cuda"}})
        assert_problem(response, status=422, code="invalid_input")
        assert fields(response) == {"compute.device": "cuda"}
        assert "workers for cpu only" in response.json()["detail"]
        assert submit(client, compute={"device": "cpu"})["route"] == "cpu"
        assert submit(client)["route"] is None
    with TestClient(create_app(without_gpus.model_copy(update={"default_worker_kind": WorkerKind.GPU}))) as client:
        assert fields(client.post("/jobs", json=SMALLEST)) == {"compute.device": None}
        assert submit(client, compute={"device": "cpu"})["route"] == "cpu"


def post(client: TestClient, key: str, **changes: object) -> Response:
    return client.post("/jobs", json={**SMALLEST, **changes}, headers={"Idempotency-Key": key})


def jobs_of(client: TestClient) -> list[str]:
    return [job["id"] for job in client.get("/jobs").json()["items"]]


def test_a_repeated_request_returns_the_first_job(client: TestClient, settings: Settings) -> None:
    first = post(client, "k")
    again = post(client, "k")
    assert first.status_code == again.status_code == 202
    assert first.headers["location"] == again.headers["location"]
    assert first.json() == again.json()
    assert jobs_of(client) == [first.json()["id"]]
    assert len(list(settings.broker_directory.glob("messages/*.msg"))) == 1


def test_long_and_short_forms_are_the_same_request(client: TestClient) -> None:
    first = post(client, "k", labels={"a": "1", "b": "2"}).json()["id"]
    longer = {
        "calibration": {"split": "train", "dataset": SMALLEST["calibration"]},
        "model": {"repo_id": SMALLEST["model"]},
        "method": None,
        "labels": {"b": "2", "a": "1"},
        "drop": None,
        "priority": 5,
    }
    assert post(client, "k", **longer).json()["id"] == first


@pytest.mark.parametrize("changes", [{"ratio": 0.5}, {"labels": {"a": "1"}}, {"priority": 6}, {"output": "org/other"}])
def test_another_request_is_refused(client: TestClient, changes: dict[str, object]) -> None:
    job = post(client, "k").json()["id"]
    assert fields(post(client, "k", **changes), code="idempotency_key_reused") == {"Idempotency-Key": "k"}
    assert jobs_of(client) == [job]


def test_a_repeated_request_does_not_contact_the_hub(client: TestClient, hub_root: Path) -> None:
    first = post(client, "k").json()["id"]
    hub_root.rename(hub_root.with_name("moved"))
    assert post(client, "k").json()["id"] == first
    assert_problem(post(client, "new"), status=503, code="hub_unreachable")


def test_a_refused_request_does_not_use_up_its_key(client: TestClient, hub_root: Path) -> None:
    fields(post(client, "k", model="org/none"), code="unknown_repository")
    fields(post(client, "k", ratio=7))
    hub_root.rename(hub_root.with_name("moved"))
    assert_problem(post(client, "k"), status=503, code="hub_unreachable")
    hub_root.with_name("moved").rename(hub_root)
    assert post(client, "k").status_code == 202


def test_a_key_expires(settings: Settings, sqlite_database: Database) -> None:
    with TestClient(create_app(settings.model_copy(update={"idempotency_seconds": 1e-3}))) as client:
        first = post(client, "k").json()["id"]
        second = post(client, "k", ratio=0.5).json()["id"]  # the expired key neither matches nor conflicts
    assert first != second
    with sqlite_database.session(read_only=True) as session:
        assert [row.job_id for row in session.query(IdempotencyKeyRow)] == [second]


@pytest.mark.parametrize("key", ["~" * 255, '"a,b;c=d"'])
def test_valid_keys(client: TestClient, key: str) -> None:
    assert post(client, key).json()["id"] == post(client, key).json()["id"]


@pytest.mark.parametrize("keys", [[""], ["a b"], ["x" * 256], ["é"], ["a", "b"]])
def test_invalid_keys(client: TestClient, keys: list[str]) -> None:
    headers = [(b"Idempotency-Key", key.encode("latin-1")) for key in keys]
    assert fields(client.post("/jobs", json=SMALLEST, headers=headers)).keys() == {"Idempotency-Key"}
    assert jobs_of(client) == []


@pytest.fixture
def finished(client: TestClient, sqlite_database: Database) -> str:
    """The path of a succeeded job."""
    job_id: str = client.post("/jobs", json=SMALLEST).json()["id"]
    with sqlite_database.session() as session:
        claim = claim_job(session, job_id)
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
