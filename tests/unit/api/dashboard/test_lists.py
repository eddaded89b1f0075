"""The pages beside that of one job: the list of jobs, workers and queues, and who sees what."""

import re
from uuid import uuid4

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import WorkerReport
from replaceme_core.ledger.watching import Workers
from replaceme_core.runner.messages import Stage
from replaceme_core.runner.sandbox import SandboxMode
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import hold_key
from tests.fixtures.api.pages import rows_of, sign_in, text_of, token_of
from tests.fixtures.api.requests import SMALLEST, submit
from tests.fixtures.jobs.ledger import claim_job


def ids(page: Response) -> list[str]:
    return re.findall(r'href="/ui/jobs/([0-9a-f-]{36})"', page.text)


def test_the_page_has_what_the_api_has(client: TestClient, sqlite_database: Database) -> None:
    first, second = (submit(client, labels={"team": team}) for team in ("a", "b"))
    with sqlite_database.session() as session:
        claim = claim_job(session, first)
        step = attempts.Step(stage=Stage.CALIBRATE, overall=0.41, fraction=0.2, eta_seconds=75)
        attempts.record_progress(session, claim, step)
    page = client.get("/ui/jobs")
    assert ids(page) == [second, first] == [job["id"] for job in client.get("/jobs").json()["items"]]
    text = text_of(page)
    for shown in ("org/name", "team=a", "queued", "running", "41 %", "calibrate, about 75 seconds left"):
        assert shown in text
    assert 'hx-get="/ui/jobs?" hx-select="#rows > *" hx-trigger="every 2s"' in page.text


def test_filters(client: TestClient) -> None:
    first, second = (submit(client, labels={"team": team}) for team in ("a", "b"))
    client.post(f"/jobs/{second}/cancel")
    for query, found in (
        ("label=team%3Da", [first]),
        ("status=cancelled", [second]),
        ("status=cancelled&status=queued", [second, first]),
        ("model=org%2Fname&label=&status=queued", [first]),
        ("model=org%2Fother", []),
        ("model=an%20other", []),
    ):
        page = client.get(f"/ui/jobs?{query}")
        assert ids(page) == found, query
    assert "No job matches these filters" in page.text
    for query, field, message in (
        ("label=team", "label", "KEY=VALUE"),
        ("label=a%3D1,a%3D2", "label", "one value for each label"),
        ("status=done", "status", "expected"),
        ("sort=zzz", "sort", "expected"),
        ("model=%01%C3%A9%22%3Cscript%3E", "model", "expected a text that matches"),
    ):
        page = client.get(f"/ui/jobs?{query}")
        assert page.status_code == 422
        beside = re.search(rf'<p class="error" id="{field}-error">([^<]+)</p>', page.text)
        assert beside is not None and message in beside[1]
        assert "There are no jobs yet" not in page.text
    assert 'é&#34;&lt;script&gt;"' in page.text


def test_an_order_by_end_hides_jobs_and_does_not_deny_them(client: TestClient) -> None:
    submit(client)
    page = client.get("/ui/jobs?sort=-finished_at")
    assert ids(page) == []
    assert "No job matches" in page.text and "There are no jobs yet" not in page.text


def test_pages_by_cursor(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.dashboard.jobs.JOBS_ON_A_PAGE", 2)
    added = [submit(client) for _ in range(5)]
    seen, path = [], "/ui/jobs?status=queued"
    for _ in range(3):
        page = client.get(path)
        seen += ids(page)
        older = re.search(r'rel="next" href="([^"]+)"', page.text)
        path = "" if older is None else older[1].replace("&amp;", "&")
    assert seen == added[::-1]
    assert (path, "Newest jobs" in page.text) == ("", True)
    page = client.get("/ui/jobs?cursor=x")
    assert (page.status_code, "This page of the list does not exist" in page.text) == (422, True)


def report(name: str, process: int, *kinds: WorkerKind) -> WorkerReport:
    return WorkerReport(
        name=name, host="h", kinds=kinds, device="cpu", sandbox=next(iter(SandboxMode)), processes=(process,)
    )


def test_queues_with_their_load(client: TestClient, settings: Settings, sqlite_database: Database) -> None:
    mine, other = (hold_key(client, settings, owner=name, scopes=["jobs:read", "jobs:write"]) for name in ("a", "b"))
    running, _, theirs = (one.post("/jobs", json=SMALLEST).json()["id"] for one in (mine, mine, other))
    other.post("/jobs", json={**SMALLEST, "compute": {"device": "cuda"}})
    sign_in(client, mine.text)
    assert "No worker is alive: jobs wait" in text_of(client.get("/ui/workers"))
    with sqlite_database.session() as session:
        workers = Workers(session)
        workers.report(report("w1", 1, WorkerKind.CPU), alive_seconds=60)
        workers.report(report("w2", 2, WorkerKind.CPU, WorkerKind.GPU), alive_seconds=60)
        workers.report(report("w3", 3, WorkerKind.CPU), alive_seconds=-1)
        claim_job(session, running, worker="h:1")
        claim_job(session, theirs, worker="h:2")
    page = client.get("/ui/workers")
    rows = rows_of(page)
    assert ["any worker", "1", "1", "2", "100 % (2 of 2 busy)"] in rows, rows
    assert ["cpu workers", "0", "0", "2", "100 % (2 of 2 busy)"] in rows
    assert ["gpu workers", "1", "0", "1", "100 % (1 of 1 busy)"] in rows
    assert [(row[0], row[1], row[-1]) for row in rows[-3:]] == [
        ("w1", "● busy", running[:8]),
        ("w2", "● busy", "–"),
        ("w3", "✕ lost", "–"),
    ]
    assert theirs not in page.text


def test_who_may_only_read_gets_no_forms(client: TestClient, settings: Settings) -> None:
    writer, reader = (hold_key(client, settings, owner="a", scopes=[scope]) for scope in ("jobs:write", "jobs:read"))
    sign_in(client, reader.text)
    listed = client.get("/ui/jobs")
    assert "jobs:write" in listed.text
    assert "Submit the first job" not in listed.text
    job = writer.post("/jobs", json=SMALLEST).json()["id"]
    form, page = client.get("/ui/new"), client.get(f"/ui/jobs/{job}")
    assert "jobs:write" in form.text
    assert 'id="job"' not in form.text
    assert (page.status_code, "Cancel" in page.text) == (200, False)
    sent = {"csrf_token": token_of(page)}
    for path in ("/ui/new", "/ui/plan", f"/ui/jobs/{job}/cancel"):
        assert client.post(path, data=sent).status_code == 403
    compared = client.post("/ui/chosen/compare", data={**sent, f"job-{job}": "1"}, follow_redirects=False)
    assert (compared.status_code, compared.headers["location"]) == (303, f"/ui/compare?id={job}"), "which reads alone"


def test_jobs_of_others_are_not_there(client: TestClient, settings: Settings) -> None:
    alice, bob = (hold_key(client, settings, owner=name, scopes=["jobs:read", "jobs:write"]) for name in ("a", "b"))
    job, other = (one.post("/jobs", json=SMALLEST).json()["id"] for one in (alice, bob))
    sign_in(client, bob.text)
    page = client.get("/ui/jobs")
    assert ids(page) == [other]
    form = {"csrf_token": token_of(page)}
    assert client.get("/ui/compare", params={"id": [job, other]}).status_code == 404
    for path in ("", "/report", "/report.json", "/plots/influence.svg", "/cancel", "/retry"):
        is_form = path in ("/cancel", "/retry")
        page = client.post(f"/ui/jobs/{job}{path}", data=form) if is_form else client.get(f"/ui/jobs/{job}{path}")
        assert page.status_code == 404
        assert "belong to another owner" in text_of(page)
        assert SMALLEST["model"] not in page.text
    assert alice.get(f"/jobs/{job}").json()["status"] == "queued"


def test_totals_are_of_all_pages_and_labels_filter(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.dashboard.jobs.JOBS_ON_A_PAGE", 2)
    jobs = [submit(client, labels={"run": str(number % 2)}) for number in range(5)]
    client.post(f"/jobs/{jobs[0]}/cancel")
    page = client.get("/ui/jobs")
    assert "5 jobs: 4 queued, 1 cancelled." in text_of(page)
    assert 'href="/ui/jobs?label=run%3D0"' in page.text
    filtered = client.get("/ui/jobs", params={"label": "run=0", "status": "cancelled"})
    assert "3 jobs: 2 queued, 1 cancelled." in text_of(filtered), "of all states, to see what there is"
    oldest = client.get("/ui/jobs", params={"sort": "created_at"})
    assert ids(oldest) == jobs[:2]
    assert '<option value="created_at" selected>' in oldest.text
    wrong = client.get("/ui/jobs", params={"sort": "sideways"})
    assert ("No list" in text_of(wrong), "hx-trigger" in wrong.text) == (True, False), "it is wrong each time"


def test_what_is_ticked_is_compared_cancelled_or_repeated(client: TestClient) -> None:
    first, second, other = (submit(client) for _ in range(3))
    page = client.get("/ui/jobs")
    form = {"csrf_token": token_of(page), "key": "once", f"job-{first}": "1", f"job-{second}": "1"}
    goes_on = {**form, f"job-{other}": "1"}  # which is no job to retry yet
    deleted = {"csrf_token": token_of(page), "key": "once", f"job-{uuid4()}": "1", **form}
    compared = client.post("/ui/chosen/compare", data=form, follow_redirects=False)
    assert compared.headers["location"] == f"/ui/compare?id={first}&id={second}"
    cancelled = client.post("/ui/chosen/cancel", data=form, follow_redirects=False)
    assert (cancelled.status_code, cancelled.headers["location"]) == (303, "/ui/jobs")
    states = {job: client.get(f"/jobs/{job}").json()["status"] for job in (first, second, other)}
    assert states == {first: "cancelled", second: "cancelled", other: "queued"}
    for ticked in (deleted, goes_on, form, form):
        assert client.post("/ui/chosen/retry", data=ticked, follow_redirects=False).status_code == 303
    again = client.get("/jobs").json()["items"]
    assert sorted(job["retry_of"] for job in again if job["retry_of"]) == sorted([first, second]), "each once"
    for action in ("compare", "cancel", "retry"):
        assert client.post(f"/ui/chosen/{action}", data={**form, "csrf_token": "x"}).status_code == 403
