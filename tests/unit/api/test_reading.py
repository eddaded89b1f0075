"""How jobs are read: entity tags, HEAD, gzip, filters and fields, what a job has done, many clients at once."""

import asyncio
import gzip
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from api.routes.jobs import JobsQuery
from api.routes.reading import BatchedReader
from replaceme_core.errors import JobNotFound
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import changes, reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import DEFAULT_OWNER
from replaceme_core.ledger.tables import JobRow
from replaceme_core.runner.messages import Measured, Stage
from replaceme_core.runner.sandbox import SandboxMode
from tests.fixtures.api.requests import SMALLEST, assert_problem, fields, submit
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.servers.database import listening

REPORT = {"before": {"perplexity": 20.0, "parameters": 100, "blocks": 30}}
REPORT |= {
    "after": {"perplexity": 25.5, "parameters": 80, "blocks": 28},
    "removed_blocks": [12, 13],
    "kept_blocks": [0, 1, 2],
}


def run(ledger: Ledger, job_id: str, *, report: dict[str, object] | None = None) -> None:
    """Claim the job, enter two stages, and end it: with a report if there is one, else in failure."""
    claim = ledger.claim(job_id)
    ledger.progress(claim, Stage.RESOLVE, Stage.CALIBRATE, fraction=0.25)
    if report is None:
        ledger.fail(claim)
    else:
        ledger.succeed(claim, report=report)


def test_an_unchanged_job_is_304_and_one_row(client: TestClient, ledger: Ledger) -> None:
    job_id = submit(client)
    claim = ledger.claim(job_id)
    first = client.get(f"/jobs/{job_id}")
    tag = first.headers["etag"]
    assert first.headers["retry-after"] == "2"
    statements: list[str] = []
    with listening(client.app.state.services().database._autocommit, statements.append):  # type: ignore[attr-defined]
        for known in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
            again = client.get(f"/jobs/{job_id}", headers={"if-none-match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
            assert again.headers["retry-after"] == "2"
    reads = [statement for statement in statements if "FROM jobs \nWHERE jobs.id IN" in statement]
    assert len(reads) == len([statement for statement in statements if statement.startswith("SELECT")]) == 4
    missing = "/jobs/00000000-0000-4000-8000-000000000000"
    for path, status in ((missing, 404), (f"/jobs/{job_id}?fields=id", 422), ("/jobs/", 404)):
        assert client.get(path, headers={"if-none-match": tag}).status_code == status
    assert client.head(f"/jobs/{job_id}", headers={"if-none-match": tag}).status_code == 304
    ledger.progress(claim, Stage.SOLVE, eta_seconds=400.0)
    changed = client.get(f"/jobs/{job_id}", headers={"if-none-match": tag})
    assert (changed.status_code, changed.headers["retry-after"]) == (200, "20")
    assert changed.headers["etag"] != tag
    ledger.fail(claim)
    assert "retry-after" not in client.get(f"/jobs/{job_id}").headers


def test_every_column_that_is_shown_changes_the_tag(client: TestClient, sqlite_database: Database) -> None:
    """Also where another release has written it, which knows nothing of tags."""
    job_id = submit(client)
    mine = (job_id, DEFAULT_OWNER)
    for column, value in (("spec", '{"x": 1}'), ("overall", 0.5), ("retried_as", "x"), ("route", "gpu")):
        with sqlite_database.session() as session:
            before = reading.get_snapshots(session, [mine])[mine].version
            session.connection().exec_driver_sql(f"UPDATE jobs SET {column} = ? WHERE id = ?", (value, job_id))
            assert reading.get_snapshots(session, [mine])[mine].version != before, column


def test_head_is_get_without_a_body(client: TestClient) -> None:
    job_id = submit(client)
    for path in (f"/jobs/{job_id}", "/jobs", f"/jobs/{job_id}/events", "/families", "/health"):
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-length", "content-type", "etag", "content-encoding"):
            assert head.headers.get(name) == got.headers.get(name), (path, name)
    assert client.head("/none").status_code == 404
    assert client.head(f"/jobs/{job_id}/cancel").status_code == 405
    stream = client.head(f"/jobs/{job_id}/events", headers={"accept": "text/event-stream"})
    assert (stream.status_code, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


def test_large_bodies_are_compressed_for_those_who_accept_it(client: TestClient) -> None:
    job_id = submit(client)
    plain = client.get(f"/jobs/{job_id}", headers={"accept-encoding": "identity"})
    with client.stream("GET", f"/jobs/{job_id}", headers={"accept-encoding": "br, gzip"}) as response:
        packed = b"".join(response.iter_raw())
    assert response.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(packed) == plain.content
    assert len(packed) == int(response.headers["content-length"]) < len(plain.content) / 2
    assert {response.headers["vary"], plain.headers["vary"]} == {"Accept-Encoding"}
    assert response.headers["etag"] == plain.headers["etag"]
    assert "content-encoding" not in client.get("/health").headers


def test_a_finished_job_has_a_result_a_summary_its_stages_and_its_attempts(client: TestClient, ledger: Ledger) -> None:
    done, failed = submit(client), submit(client)
    run(ledger, done, report=REPORT)
    run(ledger, failed)
    job = client.get(f"/jobs/{done}").json()
    assert job["result"]["removed_blocks"] == [12, 13]
    assert job["result"].keys() == {"repo_id", "revision", "removed_blocks", "kept_blocks", "warnings"}
    assert job["summary"] == {
        "blocks": {"before": 5, "after": 3},
        "parameters": {"before": 100, "after": 80},
        "perplexity": {"before": 20.0, "after": 25.5},
    }
    assert {stage["fraction"] for stage in job["stages"]} == {1.0}
    (attempt,) = job["attempts"]
    assert (attempt["number"], attempt["worker"], attempt["outcome"]) == (1, "w", "succeeded")
    assert datetime.fromisoformat(attempt["started_at"]) <= datetime.fromisoformat(attempt["finished_at"])
    job = client.get(f"/jobs/{failed}").json()
    assert job["summary"] is None
    stages = {stage["name"]: stage for stage in job["stages"]}
    assert [name for name, stage in stages.items() if stage["started_at"]] == ["resolve", "calibrate"]
    assert stages["resolve"]["finished_at"] == stages["calibrate"]["started_at"]
    assert (stages["resolve"]["fraction"], stages["calibrate"]["fraction"]) == (1.0, 0.25)
    assert (stages["solve"]["fraction"], stages["solve"]["started_at"]) == (0.0, None)
    assert_problem(client.get(f"/jobs/{failed}/report"), status=404, code="not_found")


def test_events_metrics_and_the_log_of_a_job(client: TestClient, ledger: Ledger) -> None:
    job_id = submit(client)
    claim = ledger.claim(job_id)
    of_cut = Measured(stage=Stage.SELECT, name="distance", value=0.5, unit="1", block=12, candidate="12-19")
    ledger.log(claim, *(f"line {number}" for number in range(5)))
    ledger.measure(claim, of_cut, Measured(stage=Stage.SELECT, name="seconds", value=2.0, unit="s"))
    ledger.succeed(claim)
    seen: dict[str, list[dict[str, object]]] = {}
    for name in ("events", "logs"):
        page = client.get(f"/jobs/{job_id}/{name}", params={"limit": 2}).json()
        rest = client.get(f"/jobs/{job_id}/{name}", params={"after": page["next_cursor"]}).json()
        assert (len(page["items"]), rest["next_cursor"]) == (2, None)
        seen[name] = page["items"] + rest["items"]
    assert [(one["seq"], one["type"]) for one in seen["events"]] == [(1, "created"), (2, "claimed"), (3, "succeeded")]
    assert seen["events"][0].keys() == {"seq", "type", "at", "attempt", "data"}
    assert [(one["number"], one["text"]) for one in seen["logs"]] == [(n + 1, f"line {n}") for n in range(5)]
    assert seen["logs"][0].keys() == {"number", "at", "attempt", "text"}
    metrics = client.get(f"/jobs/{job_id}/metrics").json()["items"]
    assert metrics[0].keys() == {"name", "stage", "block", "candidate", "value", "unit", "at"}
    found = [(row["name"], row["block"], row["candidate"], row["value"]) for row in metrics]
    assert found == [("distance", 12, "12-19", 0.5), ("seconds", None, None, 2.0)]


def test_lists_by_filter(client: TestClient, ledger: Ledger) -> None:
    first = submit(client, labels={"team": "b"})
    second, third = submit(client, labels={"team": "a", "run": "1"}), submit(client, labels={"team": "a", "run": "2"})
    run(ledger, second, report=REPORT)
    run(ledger, first)

    def ids(query: str) -> list[str]:
        answer = client.get(f"/jobs?{query}")
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["items"]]

    assert ids("status=failed&status=succeeded") == [second, first]
    assert ids("status=succeeded&status=queued&label=team=b") == ids("label=team=c") == []
    assert ids("label=team=a") == ids("label=team:a") == [third, second]
    assert ids("label=team=a&label=run:2") == [third]
    assert ids(f"id={first}&id={third}") == [third, first]
    assert ids("model=org/name") == [third, second, first]
    assert ids("model=org/other") == []
    assert ids("sort=created_at") == [first, second, third]
    assert ids("sort=finished_at") == [second, first]
    assert ids("sort=-finished_at") == [first, second]
    at = datetime.fromisoformat(client.get(f"/jobs/{second}").json()["created_at"])
    for name, moved, expected in (
        ("created_after", timedelta(microseconds=-1), [third, second]),
        ("created_before", timedelta(microseconds=1), [second, first]),
        ("created_after", timedelta(hours=1), []),
    ):
        params = {name: (at + moved).isoformat()}
        assert [job["id"] for job in client.get("/jobs", params=params).json()["items"]] == expected
    with ledger.database.session() as session:  # as the release before writes it
        session.connection().exec_driver_sql("UPDATE jobs SET model = NULL")
    assert ids("model=org/name") == [third, second, first]


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "-finished_at"])
def test_pages_in_every_order_by_link(client: TestClient, ledger: Ledger, sort: str) -> None:
    jobs = [submit(client) for _ in range(5)]
    for job_id in jobs:
        run(ledger, job_id)
    seen: list[str] = []
    path = f"/jobs?limit=2&sort={sort}&status=failed&status=queued&fields=id"
    while path:
        page = client.get(path)
        assert page.status_code == 200, page.text
        seen += [job["id"] for job in page.json()["items"]]
        path = page.links.get("next", {}).get("url", "")
        assert bool(path) is (page.json()["next_cursor"] is not None)
    assert seen == (jobs[::-1] if sort.startswith("-") else jobs)
    cursor = client.get("/jobs", params={"limit": 1, "sort": sort}).json()["next_cursor"]
    other = "created_at" if sort != "created_at" else "-created_at"
    assert fields(client.get("/jobs", params={"sort": other, "cursor": cursor})).keys() == {"cursor"}


def test_a_list_may_have_few_fields_and_is_304_while_unchanged(client: TestClient) -> None:
    job_id = submit(client)
    for query in ("fields=id,status", "fields=id&fields=status", "fields=status,id"):
        found = client.get(f"/jobs?{query}")
        assert found.json() == {"items": [{"id": job_id, "status": "queued"}], "next_cursor": None}
    # the tag is made of it: the order of a set would be another one in each process of the API
    assert JobsQuery(fields=["status,id", "spec,id"]).shown() == ["id", "spec", "status"]
    assert fields(client.get("/jobs?fields=id,stat")).keys() == {"fields"}
    known = {"if-none-match": found.headers["etag"]}
    assert client.get("/jobs?fields=id&fields=status", headers=known).status_code == 304
    assert client.get("/jobs", headers=known).status_code == 200
    client.post(f"/jobs/{job_id}/cancel")
    assert client.get("/jobs?fields=id&fields=status", headers=known).status_code == 200


def test_a_hundred_jobs_are_one_request_of_at_most_25_kB(client: TestClient, ledger: Ledger) -> None:
    spec = ledger.get(submit(client, labels={"team": "a", "run": "17"})).spec
    with ledger.database.session() as session:
        for _ in range(99):
            changes.add(session, spec=spec, owner=DEFAULT_OWNER)
    with client.stream("GET", "/jobs?limit=500", headers={"accept-encoding": "gzip"}) as response:
        size = len(b"".join(response.iter_raw()))
    assert response.headers["content-encoding"] == "gzip"
    assert size <= 25_000


def test_workers_are_listed_with_the_jobs_of_the_caller(client: TestClient, ledger: Ledger) -> None:
    assert client.get("/workers").json()["items"] == []
    mine = submit(client)
    report = {"device": "x CPU", "sandbox": SandboxMode.BUBBLEWRAP, "processes": (7, 8)}
    ledger.claim(mine, worker="h:7")
    ledger.claim(ledger.add(owner="somebody"), worker="h:8")
    ledger.report_worker("h:1", WorkerKind.CPU, **report)
    (worker,) = client.get("/workers").json()["items"]
    times = {name: worker.pop(name) for name in ("started_at", "heartbeat_at")}
    shown = {"name": "h:1", "host": "h", "kinds": ["cpu"], "device": "x CPU", "sandbox": "bubblewrap"}
    assert worker == {**shown, "alive": True, "busy": True, "jobs": [mine]}
    ready = client.get("/ready").json()
    assert (ready["workers"], ready["sandboxes"]) == ({"cpu": 1, "gpu": 0}, ["bubblewrap"])
    alive = {
        device: client.post("/plans", json={**SMALLEST, "compute": {"device": device}}) for device in ("cpu", "cuda")
    }
    assert {device: plan.json()["worker"]["alive"] for device, plan in alive.items()} == {"cpu": True, "cuda": False}
    ledger.report_worker("h:1", WorkerKind.CPU, alive_seconds=-1, **report)
    (lost,) = client.get("/workers").json()["items"]
    assert (lost["alive"], lost["busy"], lost["jobs"]) == (False, False, [])
    assert lost["started_at"] == times["started_at"]
    ready = client.get("/ready").json()
    assert (ready["workers"], ready["sandboxes"]) == ({"cpu": 0, "gpu": 0}, [])


def test_each_of_many_requests_gets_its_own_job_and_together_they_are_few_statements(ledger: Ledger) -> None:
    jobs, reader = [ledger.add() for _ in range(50)], BatchedReader(ledger.database)
    statements: list[str] = []

    def read(*ids: str) -> list[Any]:
        """The outcomes of requests at the same time, errors included."""

        async def at_once() -> list[Any]:
            return await asyncio.gather(*(reader.read(one, owner="someone") for one in ids), return_exceptions=True)

        return asyncio.run(at_once())

    with listening(ledger.database._engine, statements.append):
        found = read(*jobs * 4)
    expected = [(job_id, place) for place, job_id in enumerate(jobs, start=1)]
    assert [(one.seen.job.id, one.seen.position.position) for one in found] == expected * 4
    assert sum("SELECT" in statement for statement in statements) < 30
    broken, theirs, missing = ledger.add(), ledger.add(owner="bob"), str(uuid4())
    with ledger.database.session() as session:
        session.execute(update(JobRow).where(JobRow.id == broken).values(spec={"model": 3}))
    unreadable, *refused, good = read(broken, theirs, missing, "no id", jobs[7])
    assert isinstance(unreadable, ValueError)
    for error, name in zip(refused, (theirs, missing, "no id"), strict=True):
        assert (type(error), str(error)) == (JobNotFound, f"there is no job {name!r}")
    assert good.seen.job == ledger.get(jobs[7])
    reader.close()
