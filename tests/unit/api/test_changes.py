"""Retry, delete, bulk cancel, and answers that are held."""

import threading
import time
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from api.routes.event_feed import EventFeed
from benchmarks.harness.processes import wait_until
from replaceme_core.ledger.states import JobStatus
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import hold_key
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields, submit
from tests.fixtures.jobs.ledger import Ledger


def test_a_retry_has_the_stored_specification_and_both_jobs_are_linked(client: TestClient, ledger: Ledger) -> None:
    job_id = submit(client, labels={"team": "a"}, priority=7)
    assert_problem(client.post(f"/jobs/{job_id}/retry"), status=409, code="stale_transition")
    ledger.fail(job_id)
    answer = client.post(f"/jobs/{job_id}/retry")
    assert answer.status_code == 202
    again = answer.json()
    assert answer.headers["location"] == f"/jobs/{again['id']}"
    old = client.get(f"/jobs/{job_id}").json()
    assert (again["retry_of"], old["retried_as"]) == (job_id, again["id"])
    assert {**again["spec"], "output": None} == {**old["spec"], "output": None}
    assert (again["labels"], again["status"]) == ({"team": "a"}, "queued")
    assert [job["id"] for job in client.get("/jobs?label=team=a").json()["items"]] == [again["id"], job_id]
    assert_problem(client.post(f"/jobs/{'0' * 8}-0000-4000-8000-{'0' * 12}/retry"), status=404, code="job_not_found")


def test_a_retry_has_an_output_of_its_own_unless_the_request_named_it(client: TestClient, ledger: Ledger) -> None:
    def retried(job_id: str) -> tuple[str, dict[str, object]]:
        ledger.fail(job_id)
        again = client.post(f"/jobs/{job_id}/retry").json()
        return again["id"], again["spec"]["output"]

    unnamed = submit(client, output={"private": False})
    for _ in range(2):  # and so has the retry of a retry
        new, output = retried(unnamed)
        assert output["repo_id"] == f"local/name-22of30-{new[:8]}"
        assert output["private"] is False
        assert client.get(f"/jobs/{unnamed}").json()["spec"]["output"]["repo_id"].endswith(unnamed[:8])
        unnamed = new
    named, output = retried(submit(client, output="local/mine"))
    assert output["repo_id"] == "local/mine"
    assert retried(named)[1] == output


def test_a_repeated_retry_makes_one_job(client: TestClient, ledger: Ledger) -> None:
    one, other = submit(client), submit(client)
    ledger.fail(one)
    ledger.fail(other)
    key = {"idempotency-key": "again"}
    made = [client.post(f"/jobs/{one}/retry", headers=key) for _ in range(2)]
    assert made[0].json()["id"] == made[1].json()["id"]
    assert [answer.headers.get("idempotent-replayed") for answer in made] == [None, "true"]
    assert_problem(client.post(f"/jobs/{other}/retry", headers=key), status=422, code="idempotency_key_reused")


def test_a_repeated_submission_that_finds_a_failed_job_says_so(client: TestClient, ledger: Ledger) -> None:
    key = {"idempotency-key": "k"}
    first = client.post("/jobs", json=SMALLEST, headers=key)
    job_id = first.json()["id"]
    repeated = client.post("/jobs", json=SMALLEST, headers=key)
    assert [answer.json()["notice"] for answer in (first, repeated)] == [None, None]
    assert repeated.headers["idempotent-replayed"] == "true"
    ledger.fail(job_id)
    notice = client.post("/jobs", json=SMALLEST, headers=key).json()["notice"]
    assert "failed" in notice and f"/jobs/{job_id}/retry" in notice


def test_a_finished_job_is_deleted_with_everything(client: TestClient, ledger: Ledger) -> None:
    job_id = submit(client)
    assert_problem(client.delete(f"/jobs/{job_id}"), status=409, code="stale_transition")
    ledger.fail(job_id)
    answer = client.delete(f"/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    for path in ("", "/events", "/metrics", "/logs", "/report"):
        assert_problem(client.get(f"/jobs/{job_id}{path}"), status=404, code="job_not_found")
    assert_problem(client.delete(f"/jobs/{job_id}"), status=404, code="job_not_found")
    with ledger.database.session() as session:
        for table in ("job_events", "job_labels", "metrics", "job_logs", "idempotency_keys"):
            left = session.connection().exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
            assert left == 0, table


def test_jobs_are_cancelled_by_filter(client: TestClient, ledger: Ledger) -> None:
    queued, running, other = submit(client, labels={"t": "a"}), submit(client, labels={"t": "a"}), submit(client)
    ledger.claim(running)
    theirs = ledger.add(owner="somebody", labels={"t": "a"})
    answer = client.post("/jobs/cancel", json={"labels": {"t": "a"}}).json()
    assert answer == {
        "items": [{"id": queued, "status": "cancelled"}, {"id": running, "status": "running"}],
        "more": False,
    }
    assert client.post("/jobs/cancel", json={"labels": {"t": "a"}}).json()["items"] == []
    assert [item["id"] for item in client.post("/jobs/cancel", json={"all": True}).json()["items"]] == [other]
    assert ledger.status(theirs) == "queued"
    assert ledger.get(running).cancel_requested
    for body, field in (
        ({}, "all"),
        ({"all": True, "model": "a/b"}, "all"),
        ({"label": {}}, "label"),
        ({"status": ["done"]}, "status.0"),
    ):
        assert fields(client.post("/jobs/cancel", json=body)).keys() == {field}
    (error,) = client.post("/jobs/cancel", json={"ids": "one"}).json()["errors"]
    assert error["message"].startswith("expected a list of up to 200, each a string matching")


def test_cancelling_many_takes_a_bounded_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is cancelled by the next request: none is lost to a deadline, and the rows are free in between."""
    monkeypatch.setattr("api.routes.jobs.CANCEL_SECONDS", 0.0)
    jobs, done = [submit(client) for _ in range(3)], []
    for left in (True, True, False):
        answer = client.post("/jobs/cancel", json={"all": True}).json()
        done += [item["id"] for item in answer["items"]]
        assert answer["more"] is left
    assert done == jobs


def once_held(client: TestClient, act: Callable[[], object]) -> threading.Thread:
    """Acts while an answer is held."""
    feed: EventFeed = client.app.state.services().feed  # type: ignore[attr-defined]

    def run() -> None:
        wait_until(lambda: feed.followers, seconds=30, what="an answer that is held")
        act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_an_answer_is_held_until_the_job_has_ended(client: TestClient, ledger: Ledger) -> None:
    key = {"idempotency-key": "k"}
    job_id = client.post("/jobs", json=SMALLEST, headers=key).json()["id"]
    acting, began = once_held(client, lambda: ledger.fail(job_id)), time.monotonic()
    answer = client.post("/jobs", json=SMALLEST, headers={**key, "prefer": "respond-async, wait=30"})
    assert time.monotonic() - began < 15
    acting.join()
    assert (answer.status_code, answer.json()["status"]) == (202, "failed")
    assert answer.headers["preference-applied"] == "wait=30"
    assert "retry-after" not in answer.headers


def test_an_answer_that_outlives_its_key_has_no_news(client: TestClient, settings: Settings, ledger: Ledger) -> None:
    admin = hold_key(client, settings, owner="a", scopes=["admin"])
    holder = hold_key(client, settings, owner="a", scopes=["jobs:write"])
    key = {"idempotency-key": "k"}
    job_id = holder.post("/jobs", json=SMALLEST, headers=key).json()["id"]

    def end() -> None:
        assert admin.delete(f"/keys/{holder.key_id}").status_code < 300
        ledger.fail(job_id)

    acting = once_held(client, end)
    answer = holder.post("/jobs", json=SMALLEST, headers={**key, "prefer": "wait=30"})
    acting.join()
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert ledger.status(job_id) is JobStatus.FAILED


def test_an_answer_is_held_for_as_long_as_asked_for(client: TestClient) -> None:
    began = time.monotonic()
    answer = client.post("/jobs", json=SMALLEST, headers={"prefer": "wait=1"})
    assert 1 <= time.monotonic() - began < 15
    assert (answer.json()["status"], answer.headers["retry-after"]) == ("queued", "2")
    for preference in ("wait=x", "wait", "await=9", "wait=-1"):
        assert "preference-applied" not in client.post("/jobs", json=SMALLEST, headers={"prefer": preference}).headers
