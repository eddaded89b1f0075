"""The list of jobs as a page: what it shows, filters, pages, and its part that changes."""

import re

import pytest
from starlette.testclient import TestClient

from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database
from replaceme_core.runner.messages import Stage
from replaceme_core.settings import Settings
from tests.fixtures.api.keys import hold_key
from tests.fixtures.api.pages import sign_in, text_of
from tests.fixtures.api.requests import SMALLEST
from tests.fixtures.jobs.ledger import claim_job


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


def test_who_may_only_read_gets_no_buttons(client: TestClient, settings: Settings) -> None:
    sign_in(client, hold_key(client, settings, owner="bob", scopes=["jobs:read"]).text)
    page = client.get("/ui/jobs")
    assert "Submit the first job" not in page.text
    assert "jobs:write" in page.text


def test_jobs_of_others_are_not_listed(client: TestClient, settings: Settings) -> None:
    alice, bob = (hold_key(client, settings, owner=name, scopes=["jobs:read", "jobs:write"]) for name in ("a", "b"))
    mine = alice.post("/jobs", json=SMALLEST).json()["id"]
    sign_in(client, bob.text)
    assert mine not in client.get("/ui/jobs").text
    sign_in(client, alice.text)
    assert ids(client.get("/ui/jobs").text) == [mine]
