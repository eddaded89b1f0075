"""The pages beside that of one job: the list of jobs, jobs side by side, workers and queues, and who sees what."""

import re

import pytest
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
from tests.fixtures.api.pages import sign_in, text_of, token_of
from tests.fixtures.api.requests import SMALLEST
from tests.fixtures.jobs.ledger import claim_job, succeed


def ids(text: str) -> list[str]:
    return re.findall(r'href="/ui/jobs/([0-9a-f-]{36})"', text)


def test_the_page_has_what_the_api_has(client: TestClient, sqlite_database: Database) -> None:
    first, second = (client.post("/jobs", json={**SMALLEST, "labels": {"team": team}}).json() for team in ("a", "b"))
    with sqlite_database.session() as session:
        claim = claim_job(session, first["id"])
        attempts.record_progress(session, claim, stage=Stage.CALIBRATE, overall=0.41, fraction=0.2, eta_seconds=75)
    seen = client.get("/events").json()["items"]
    page = client.get("/ui/jobs")
    assert ids(page.text) == [second["id"], first["id"]] == [job["id"] for job in client.get("/jobs").json()["items"]]
    text = text_of(page)
    for shown in ("org/name", "team=a", "queued", "running", "41 %", "calibrate, about 75 seconds left"):
        assert shown in text
    # nothing that happens after the page was read is missed
    assert f'sse-connect="/ui/job-changes?after={seen[-1]["position"]}&amp;running={first["id"]}"' in page.text
    part = client.get("/ui/job-rows")
    assert ids(part.text) == ids(page.text)
    assert "<html" not in part.text


def test_filters(client: TestClient) -> None:
    first, second = (
        client.post("/jobs", json={**SMALLEST, "labels": {"team": team}}).json()["id"] for team in ("a", "b")
    )
    client.post(f"/jobs/{second}/cancel")
    for query, found in (
        ("label=team%3Da", [first]),
        ("status=cancelled", [second]),
        ("status=cancelled&status=queued", [second, first]),
        ("model=org%2Fname&label=&status=queued", [first]),
        ("model=org%2Fother", []),
    ):
        page = client.get(f"/ui/jobs?{query}")
        assert ids(page.text) == found, query
    assert "No job matches these filters" in page.text
    assert "Show all" in page.text


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("label=team", "label", "KEY=VALUE"),
        ("label=a%3D1,a%3D2", "label", "one value for each label"),
        ("status=done", "status", "expected"),
        ("model=%C3%A9", "model", "String should match pattern"),
    ],
)
def test_a_filter_that_is_wrong_is_explained_beside_it(
    client: TestClient, query: str, field: str, message: str
) -> None:
    page = client.get(f"/ui/jobs?{query}")
    assert page.status_code == 422
    beside = re.search(rf'<p class="error" id="{field}-error">([^<]+)</p>', page.text)
    assert beside is not None
    assert message in beside[1]
    assert "There are no jobs yet" not in page.text


def test_pages_by_cursor(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.dashboard.jobs.JOBS_ON_A_PAGE", 2)
    added = [client.post("/jobs", json=SMALLEST).json()["id"] for _ in range(5)]
    seen, path = [], "/ui/jobs?status=queued"
    for _ in range(3):
        page = client.get(path)
        seen += ids(page.text)
        older = re.search(r'rel="next" href="([^"]+)"', page.text)
        path = "" if older is None else older[1].replace("&amp;", "&")
    assert seen == added[::-1]
    assert path == ""
    assert "Newest jobs" in page.text
    page = client.get("/ui/jobs?cursor=x")
    assert page.status_code == 422
    assert "This page of the list does not exist" in page.text


def test_names_with_markup_are_escaped(client: TestClient) -> None:
    page = client.get("/ui/jobs?model=%3Cscript%3Ealert(1)%3C%2Fscript%3E%22")
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;" in page.text


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
    for path in ("/ui/new", "/ui/plan", f"/ui/jobs/{job}/cancel"):
        assert client.post(path, data={"csrf_token": token_of(page)}).status_code == 403


def test_jobs_of_others_are_not_there(client: TestClient, settings: Settings) -> None:
    alice, bob = (hold_key(client, settings, owner=name, scopes=["jobs:read", "jobs:write"]) for name in ("a", "b"))
    job, other = (one.post("/jobs", json=SMALLEST).json()["id"] for one in (alice, bob))
    sign_in(client, bob.text)
    page = client.get("/ui/jobs")
    assert ids(page.text) == [other]
    form = {"csrf_token": token_of(page)}
    assert client.get("/ui/compare", params={"id": [job, other]}).status_code == 404
    for path in ("", "/live", "/changes", "/report", "/report.json", "/plots/influence.svg", "/cancel", "/retry"):
        is_form = path in ("/cancel", "/retry")
        page = client.post(f"/ui/jobs/{job}{path}", data=form) if is_form else client.get(f"/ui/jobs/{job}{path}")
        assert page.status_code == 404
        assert "belong to another owner" in text_of(page)
        assert SMALLEST["model"] not in page.text
    assert alice.get(f"/jobs/{job}").json()["status"] == "queued"
