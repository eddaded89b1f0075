"""Submission of jobs: what is filled in, what is refused, and requests that are sent again."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from httpx2 import Response
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from api.main import create_app
from api.routes.reading import LONGEST_AGE_SECONDS
from api.routes.submission import Submitter
from benchmarks.harness.processes import wait_until
from replaceme_core.hardware import WorkerKind
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.ledger import attempts, changes
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import IdempotencyKey, Job
from replaceme_core.ledger.tables import IdempotencyKeyRow
from replaceme_core.request.method import MethodSpec
from replaceme_core.runner.messages import Stage
from replaceme_core.settings import RUN_JOB_TASK, Settings
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields
from tests.fixtures.jobs.ledger import Ledger, succeed


def submit(client: TestClient, **changes: object) -> dict[str, Any]:
    response = client.post("/jobs", json={**SMALLEST, **changes})
    assert response.status_code == 202, response.text
    body: dict[str, Any] = response.json()
    return body


def ids_of(client: TestClient) -> list[str]:
    return [job["id"] for job in client.get("/jobs").json()["items"]]


@contextmanager
def moved(hub_root: Path) -> Iterator[None]:
    """While the Hub cannot be reached."""
    away = hub_root.rename(hub_root.with_name("moved"))
    try:
        yield
    finally:
        away.rename(hub_root)


def test_a_submitted_job_is_enqueued_with_the_documented_fields(client: TestClient, settings: Settings) -> None:
    response = client.post("/jobs", json={**SMALLEST, "labels": {"team": "a"}})
    assert response.status_code == 202
    job = response.json()
    here = f"/jobs/{UUID(job['id'])}"
    assert response.headers["location"] == here
    assert job["progress"] == {"overall": 0.0, "stage": 0.0, "eta_seconds": None, "eta_error_seconds": None}
    assert [job[name] for name in ("status", "labels", "attempt")] == ["queued", {"team": "a"}, 0]
    assert [job[name] for name in ("stage", "started_at", "finished_at", "error", "result")] == [None] * 5
    assert datetime.fromisoformat(job["created_at"]).tzinfo is not None
    assert job["links"] == {
        "self": here,
        **{name: f"{here}/{name}" for name in ("cancel", "retry", "events", "metrics", "logs", "report")},
    }
    whole = client.get(here).json()
    assert job.pop("notice") is None
    assert whole == {**whole, **job}
    assert (whole["queue"], whole["attempts"]) == ({"position": 1, "estimated_start_at": None}, [])
    assert {stage["name"] for stage in whole["stages"]} == set(Stage) - {Stage.HEAL}
    (message,) = (settings.broker_directory / "messages").glob("*.msg")
    headers = json.loads(message.read_text())["headers"]
    assert (headers["task"], headers["argsrepr"]) == (RUN_JOB_TASK, repr([job["id"]]))


def test_the_spec_of_a_job_is_resolved(client: TestClient, settings: Settings) -> None:
    def limits(spec: dict[str, object]) -> list[object]:
        return [spec[name] for name in ("max_queue_seconds", "max_runtime_seconds")]

    spec = submit(client, calibration={"dataset": "org/data", "samples": 64})["spec"]
    assert len(spec["model"]["revision"]) == len(spec["calibration"]["revision"]) == 40
    assert spec["calibration"]["split"] == "train"
    assert spec["method"] == MethodSpec().model_dump(mode="json")
    assert spec["output"]["private"] is True
    assert spec["output"]["repo_id"].startswith("local/name-22of30-")
    assert limits(spec) == [None, settings.max_runtime_seconds]
    job = submit(client, max_queue_seconds=60, max_runtime_seconds=90.5)
    assert limits(job["spec"]) == limits(client.get(f"/jobs/{job['id']}").json()["spec"]) == [60, 90.5]
    strict = settings.model_copy(update={"max_queue_seconds": 30.0})
    with TestClient(create_app(strict)) as other:
        assert limits(submit(other, max_runtime_seconds=7)["spec"]) == [30, 7]


def test_the_hub_is_contacted_before_a_transaction_begins(
    client: TestClient, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(self: DirectoryHub, *arguments: object, **options: object) -> object:
        with sqlite_database.session() as session:  # blocks forever if the request already holds the write lock
            session.execute(text("SELECT 1"))
        return original(self, *arguments, **options)  # type: ignore[arg-type]

    original = DirectoryHub.resolve
    monkeypatch.setattr(DirectoryHub, "resolve", resolve)
    submit(client)


def test_a_queued_job_has_a_queue_position(client: TestClient, sqlite_database: Database) -> None:
    first, second, urgent = submit(client), submit(client), submit(client, priority=9)

    def queue_of(job: dict[str, object]) -> Any:
        return client.get(f"/jobs/{job['id']}").json()["queue"]

    assert queue_of(second) == {"position": 3, "estimated_start_at": None}
    with sqlite_database.session() as session:
        claim = attempts.claim_next(session, worker="test", lease_seconds=60)
        assert claim is not None
        assert claim.job_id == urgent["id"]
        succeed(session, claim)
    assert queue_of(urgent) is None
    wait_until(
        lambda: queue_of(second)["position"] == 2,
        seconds=2 * LONGEST_AGE_SECONDS,
        what="a refresh of the queue positions",
    )
    assert datetime.fromisoformat(queue_of(second)["estimated_start_at"]).tzinfo is not None
    client.post(f"/jobs/{first['id']}/cancel")
    assert queue_of(first) is None
    assert "queue" not in client.get("/jobs").json()["items"][0]


def test_query_parameters_of_the_list_are_checked(client: TestClient) -> None:
    for query, field in (
        *((f"limit={'9' * 5000}", "limit"), ("cursor=x", "cursor"), ("cursor=%00", "cursor"), ("limit=1&x=%ff", "x")),
        *(("label=team", "label"), ("label=a=%00", "label"), ("label=%ff=a", "label")),
        *(("label=team=a&label=team=b", "label"), ("status=queued&status=QUEUED", "status.1")),
    ):
        assert fields(client.get(f"/jobs?{query}")).keys() == {field}


def test_a_job_is_cancelled_by_its_state(client: TestClient, ledger: Ledger) -> None:
    """At once while it is queued, soon while it runs, and not any more once it has ended."""
    queued, running = (str(submit(client)["id"]) for _ in range(2))
    claim = ledger.claim(running)
    for job_id, status, state in ((queued, 200, "cancelled"), (running, 202, "running")) * 2:
        response = client.post(f"/jobs/{job_id}/cancel")
        assert (response.status_code, response.json()["status"]) == (status, state)
    assert client.get(f"/jobs/{queued}").json()["finished_at"]
    ledger.fail(claim)
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
        ({"output": "Org/Name"}, "output.repo_id", "invalid_input"),
    ],
)
def test_impossible_requests_are_refused(client: TestClient, changes: dict[str, object], field: str, code: str) -> None:
    """And a plan, which is no error, says so."""
    body = {**SMALLEST, **changes}
    assert fields(client.post("/jobs", json=body), code=code).keys() == {field}
    assert ids_of(client) == []
    plan = client.post("/plans", json=body)
    assert plan.status_code == 200, plan.text
    assert [(one["field"], one["code"]) for one in plan.json()["refusals"]] == [(field, code)]


def test_the_device_selects_the_worker_kind(client: TestClient, settings: Settings) -> None:
    assert submit(client)["route"] is None
    assert submit(client, compute={"device": "cuda"})["route"] == "gpu"
    for_gpus = settings.model_copy(update={"default_worker_kind": WorkerKind.GPU})
    with TestClient(create_app(for_gpus)) as other:
        job = submit(other)
        assert job["route"] == "gpu"
        assert other.get(f"/jobs/{job['id']}").json()["route"] == "gpu"
        assert submit(other, compute={"device": "cpu"})["route"] == "cpu"
    messages = settings.broker_directory / "messages"
    assert sorted(path.name.split(".")[-2] for path in messages.iterdir()) == ["cpu", "gpu", "gpu", "replaceme"]


def test_a_job_that_no_worker_can_run_is_refused(settings: Settings) -> None:
    without_gpus = settings.model_copy(update={"worker_kinds": (WorkerKind.CPU,)})
    with TestClient(create_app(without_gpus)) as client:
        asked = {**SMALLEST, "compute": {"device": "cuda"}}
        response, plan = client.post("/jobs", json=asked), client.post("/plans", json=asked).json()
        assert fields(response) == {"compute.device": "cuda"}
        assert "workers for cpu only" in response.json()["detail"]
        assert plan["worker"] == {"route": "gpu", "estimated_for": "gpu", "alive": False}
        assert [refusal["field"] for refusal in plan["refusals"]] == ["compute.device"]
        assert submit(client)["route"] is None
    with TestClient(create_app(without_gpus.model_copy(update={"default_worker_kind": WorkerKind.GPU}))) as client:
        assert fields(client.post("/jobs", json=SMALLEST)) == {"compute.device": None}
        assert submit(client, compute={"device": "cpu"})["route"] == "cpu"


# Requests that are sent again


def post(client: TestClient, key: str, **changes: object) -> Response:
    return client.post("/jobs", json={**SMALLEST, **changes}, headers={"Idempotency-Key": key})


def test_a_repeated_request_returns_the_first_job(client: TestClient, settings: Settings, hub_root: Path) -> None:
    """Also where its form is another one, and without the Hub."""
    first = post(client, "k", labels={"a": "1", "b": "2"})
    longer = {
        "calibration": {"split": "train", "dataset": SMALLEST["calibration"]},
        "model": {"repo_id": SMALLEST["model"]},
        "method": None,
        "labels": {"b": "2", "a": "1"},
        "drop": None,
        "priority": 5,
    }
    with moved(hub_root):
        again = post(client, "k", **longer)
        refused = post(client, "new")
    assert first.status_code == again.status_code == 202
    assert first.headers["location"] == again.headers["location"]
    assert first.json() == again.json()
    assert ids_of(client) == [first.json()["id"]]
    assert len(list(settings.broker_directory.glob("messages/*.msg"))) == 1
    assert_problem(refused, status=503, code="hub_unreachable")
    assert int(refused.headers["retry-after"]) > 0


def test_a_repetition_returns_the_job_that_has_just_taken_the_last_place(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[Response] = []
    prepare = Submitter._prepare

    def prepare_while_the_first_is_accepted(*arguments: Any, **named: Any) -> object:
        found = prepare(*arguments, **named)
        monkeypatch.setattr(Submitter, "_prepare", prepare)
        first.append(post(client, "k"))
        return found

    monkeypatch.setattr(Submitter, "_prepare", prepare_while_the_first_is_accepted)
    with TestClient(create_app(settings.model_copy(update={"most_jobs": 1}))) as client:
        again = post(client, "k")
        assert [answer.status_code for answer in (*first, again)] == [202, 202]
        assert again.json()["id"] == first[0].json()["id"]
        assert again.headers["idempotent-replayed"] == "true"


def test_a_repeated_sweep_has_all_of_its_jobs(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first one is committed after the repeated one has looked for its jobs the first time."""
    sweep = {"ratio": [0.1, 0.25, 0.5]}
    first = post(client, "k", **sweep).json()["items"]
    find, missed = changes.find_by_keys, list[object]()

    def find_late(session: Session, keys: Sequence[IdempotencyKey], *, owner: str) -> list[Job]:
        if not missed:
            missed.extend(keys)
            return []
        return find(session, keys, owner=owner)

    monkeypatch.setattr(changes, "find_by_keys", find_late)
    assert [job["id"] for job in post(client, "k", **sweep).json()["items"]] == [job["id"] for job in first]


def test_another_request_with_the_same_key_is_refused(client: TestClient) -> None:
    job = post(client, "k").json()["id"]
    for other in ({"ratio": 0.5}, {"labels": {"a": "1"}}, {"priority": 6}, {"output": "org/other"}):
        assert fields(post(client, "k", **other), code="idempotency_key_reused") == {"Idempotency-Key": "k"}
    assert ids_of(client) == [job]


def test_a_refused_request_does_not_use_up_its_key(client: TestClient, hub_root: Path) -> None:
    fields(post(client, "k", model="org/none"), code="unknown_repository")
    fields(post(client, "k", ratio=7))
    with moved(hub_root):
        assert_problem(post(client, "k"), status=503, code="hub_unreachable")
    assert post(client, "k").status_code == 202


def test_a_key_expires(settings: Settings, sqlite_database: Database) -> None:
    with TestClient(create_app(settings.model_copy(update={"idempotency_seconds": 1e-3}))) as client:
        first = post(client, "k").json()["id"]
        second = post(client, "k", ratio=0.5).json()["id"]  # the expired key neither matches nor conflicts
    assert first != second
    with sqlite_database.session(read_only=True) as session:
        assert [row.job_id for row in session.query(IdempotencyKeyRow)] == [second]


def test_keys_are_visible_ascii(client: TestClient) -> None:
    for key in ("~" * 255, '"a,b;c=d"'):
        assert post(client, key).json()["id"] == post(client, key).json()["id"]
    for keys in ([""], ["a b"], ["x" * 256], ["é"], ["a", "b"]):
        headers = [(b"Idempotency-Key", key.encode("latin-1")) for key in keys]
        assert fields(client.post("/jobs", json=SMALLEST, headers=headers)).keys() == {"Idempotency-Key"}
    assert len(ids_of(client)) == 2


# Sweeps


def test_a_sweep_is_one_job_per_ratio(client: TestClient, settings: Settings) -> None:
    made = post(client, "k", ratio=[0.2, 0.4, 0.6], labels={"team": "a"})
    assert made.status_code == 202
    jobs = made.json()["items"]
    assert [job["spec"]["ratio"] for job in jobs] == [0.2, 0.4, 0.6]
    assert [job["labels"] for job in jobs] == [{"team": "a", "sweep": jobs[0]["labels"]["sweep"]}] * 3
    assert len({job["spec"]["output"]["repo_id"] for job in jobs}) == 3
    listed = client.get(made.headers["location"]).json()["items"]
    assert {job["id"] for job in listed} == {job["id"] for job in jobs} == set(ids_of(client))
    assert len(list(settings.broker_directory.glob("messages/*.msg"))) == 3
    again = post(client, "k", ratio=[0.2, 0.4, 0.6], labels={"team": "a"})
    assert (again.json(), again.headers["idempotent-replayed"]) == (made.json(), "true")
    assert fields(post(client, "k", ratio=[0.2, 0.4]), code="idempotency_key_reused") == {"Idempotency-Key": "k"}
    assert len(ids_of(client)) == 3
    named = client.post("/jobs", json={**SMALLEST, "ratio": [0.2, 0.4], "labels": {"sweep": "depth"}})
    assert named.headers["location"] == "/jobs?label=sweep%3Ddepth"
    webhook = {"webhook": {"url": "https://hooks.example.com/x"}}
    told = client.post("/jobs", json={**SMALLEST, "ratio": [0.2, 0.4], **webhook})
    assert len({job["webhook"]["secret"] for job in told.json()["items"]}) == 2
    assert told.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "ratio", [[], [0.5], [0.5, 0.5], [0.5, 1], ["0.5", 0.2], [0.5, None], [0.01 * n for n in range(1, 18)]]
)
def test_a_sweep_needs_different_ratios(client: TestClient, ratio: list[object]) -> None:
    assert set(fields(client.post("/jobs", json={**SMALLEST, "ratio": ratio}))) == {"ratio"}
    assert ids_of(client) == []


def test_a_sweep_is_submitted_whole_or_not_at_all(client: TestClient, settings: Settings) -> None:
    several = {**SMALLEST, "ratio": [0.2, 0.4, 0.6]}
    assert set(fields(client.post("/jobs", json={**several, "output": "org/one"}))) == {"output.repo_id"}
    full = {f"l{number}": "1" for number in range(32)}
    assert set(fields(client.post("/jobs", json={**several, "labels": full}))) == {"labels"}
    fields(client.post("/jobs", json={**several, "model": "org/none"}), code="unknown_repository")
    assert set(fields(client.post("/plans", json=several))) == {"ratio"}
    plans = client.post("/jobs", json={**several, "validate_only": True}).json()["items"]
    assert [plan["estimate"]["blocks"]["after"] for plan in plans] == sorted(
        (plan["estimate"]["blocks"]["after"] for plan in plans), reverse=True
    )
    with TestClient(create_app(settings.model_copy(update={"most_jobs": 3}))) as limited:
        assert limited.post("/jobs", json=SMALLEST).status_code == 202
        for body in (several, {**several, "validate_only": True}, {**several, "ratio": [0.1, 0.2, 0.3, 0.4]}):
            refused = limited.post("/jobs", json=body)
            assert_problem(refused, status=429, code="too_many_jobs")
        assert len(ids_of(limited)) == 1
        assert limited.post("/jobs", json={**several, "ratio": [0.2, 0.4]}).status_code == 202
