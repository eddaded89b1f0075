"""Several jobs side by side: their figures, quality against size and speed, the smallest that passes, the file."""

import csv
import io
import re
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from api.dashboard import comparing
from api.dashboard.comparing import charts_of
from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import Claim
from tests.fixtures.api.pages import rows_of, text_of, token_of
from tests.fixtures.api.requests import SMALLEST, submit
from tests.fixtures.jobs.ledger import claim_job, succeed
from tests.fixtures.jobs.measured import REPORTED, run


def test_jobs_side_by_side(client: TestClient, sqlite_database: Database) -> None:
    measured, done, queued = (submit(client, ratio=ratio) for ratio in (0.25, 0.5, 0.1))
    run(sqlite_database, measured, lambda session, claim: succeed(session, claim, report=REPORTED))
    with sqlite_database.session() as session:
        succeed(session, claim_job(session, done))
    rows = rows_of(client.get("/ui/compare", params={"id": [measured, done, queued, measured]}))
    for row in (
        ["Status", "succeeded", "succeeded", "queued"],
        ["Removes", "0.25 of the blocks", "0.5 of the blocks", "0.1 of the blocks"],
        ["Removed blocks", "12-13", "12-13", "–"],
        ["Perplexity", "12.35 → 15.43 +25.0 %", "–", "–"],
        ["Perplexity on builtin:prose", "12.00 → 15.00 1.250 times", "–", "–"],
    ):
        assert row in rows, rows
    better = submit(client)
    slower = {"decode": {"median": 7.36, "low": 7.1, "high": 10.2}}
    less = {**REPORTED, "after": {"perplexity": 14.0, "speed": slower}}
    run(sqlite_database, better, lambda session, claim: succeed(session, claim, report=less))
    rows = rows_of(client.get("/ui/compare", params={"id": [measured, better]}))
    assert ["Perplexity", "12.35 → 15.43 +25.0 %", "12.35 → 14.00 +13.4 % best"] in rows
    speeds = next(row[1:] for row in rows if row[0] == "Tokens written per second")
    assert speeds == [
        "20 (10 to 30) → 26 (16 to 36) not significant",
        "20 (10 to 30) → 7.4 (7.1 to 10) not significant",
    ]
    other = submit(client)  # measured on another text
    sides = {"before": {**REPORTED["before"], "perplexity": 9.0}, "after": {**REPORTED["after"], "perplexity": 9.5}}
    run(sqlite_database, other, lambda session, claim: succeed(session, claim, report={**REPORTED, **sides}))
    heals = submit(client, heal={"tokens": 1000})
    rows = rows_of(client.get("/ui/compare", params={"id": [measured, heals]}))
    names = [row[0] for row in rows]
    assert names.index("fold") < names.index("heal") < names.index("save") < names.index("publish"), "in order"
    rows = rows_of(client.get("/ui/compare", params={"id": [measured, other]}))
    assert ["Perplexity", "12.35 → 15.43 +25.0 %", "9.00 → 9.50 +5.6 %"] in rows
    for given, shown in ((0, "No job was chosen"), (1, "One job was"), (6, "6 jobs were chosen")):
        ids = [f"{number:08}-0000-0000-0000-{0:012}" for number in range(given)]
        page = client.get("/ui/compare", params={"id": ids})
        assert page.status_code == 422
        assert shown in text_of(page) and "2 to 5 can be compared" in text_of(page)


def a_report(*, size: int, worst: float) -> dict[str, Any]:
    """Of a result of that many of 100 bytes."""
    sides = {side: {**REPORTED[side], "bytes": count} for side, count in (("before", 100), ("after", size))}
    other = {"name": "other", "before": 4.0, "after": 4.0 * worst, "ratio": worst}
    return {**REPORTED, **sides, "texts": [*REPORTED["texts"], other]}


def a_sweep(client: TestClient, database: Database) -> list[str]:
    """Three jobs: two with results, and one that failed."""
    made = client.post("/jobs", json={**SMALLEST, "ratio": [0.2, 0.4, 0.6], "labels": {"sweep": "depth"}})
    small, smaller, failed = (job["id"] for job in made.json()["items"])
    run(database, small, lambda session, claim: succeed(session, claim, report=a_report(size=80, worst=1.5)))
    run(database, smaller, lambda session, claim: succeed(session, claim, report=a_report(size=60, worst=2.5)))

    def fail(session: Session, claim: Claim) -> None:
        attempts.fail(session, claim, code="out_of_memory", message="no memory")

    with database.session() as session:
        fail(session, claim_job(session, failed))
    return [small, smaller, failed]


def test_jobs_with_a_label(client: TestClient, sqlite_database: Database) -> None:
    small, smaller, failed = a_sweep(client, sqlite_database)
    page = client.get("/ui/sweep?label=sweep%3Ddepth")
    rows = rows_of(page)
    for row in (
        ["Removes", "Status", "Perplexity", "Weights on disk", "Tokens written per second", "Worst on other text"],
        [
            f"0.2 of the blocks {small[:8]}",
            "succeeded",
            "1.250 times",
            "-20.0 %",
            "not significant",
            "1.500 times",
            "–",
        ],
        [f"0.6 of the blocks {failed[:8]}", "failed", "–", "–", "–", "–", "–"],
    ):
        assert row in [one[: len(row)] for one in rows], rows
    assert page.text.count("<svg viewBox") == 2 + 3, "two charts, and a sign per status"
    assert f'aria-label="0.4 of the blocks ({smaller[:8]}): 60 %, 2.5"' in page.text
    assert 'class="best"' not in page.text and "diamond" not in text_of(page)
    marked = {most: client.get(f"/ui/sweep?label=sweep%3Ddepth&most={most}") for most in ("2", "3", "1")}
    for most, best in (("2", small), ("3", smaller), ("1", None)):
        chosen = re.findall(r'<tr role="row" class="chosen">\s*<th[^>]*><a href="/ui/jobs/([^"]+)"', marked[most].text)
        assert chosen == ([best] if best else []), most
    assert 'viewBox="0 -15 640 315"' in page.text
    wide = client.get("/ui/sweep?label=sweep%3Ddepth&most=1000000").text
    assert ">1,000,000.0<" in wide and 'viewBox="-49 -15 689 315"' in wide, "there is room for what the axis says"
    assert "every 2s" not in page.text, "all have ended"
    for given in ("few", "nan", "0", "1.7e308"):
        wrong = client.get(f"/ui/sweep?label=sweep%3Ddepth&most={given}")
        assert (wrong.status_code, "expected a number such as 1.6" in text_of(wrong)) == (422, True)
    assert client.get("/ui/sweep?label=sweep%3Dnone").status_code == 404
    assert client.get("/ui/sweep?label=sweep").status_code == 422


def test_the_progress_of_jobs_with_a_label_is_live(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client, labels={"team": "a"})
    run(sqlite_database, job)
    page = client.get("/ui/sweep?label=team%3Da&most=1.1")
    assert rows_of(page)[-1][-1] == "–", "no judgement before the end"
    page = client.get("/ui/sweep?label=team%3Da")
    assert 'hx-get="/ui/sweep?label=team%3Da" hx-select="#rows" hx-swap="outerHTML" hx-trigger="every 2s"' in page.text
    assert "running 40 %" in text_of(page)


def test_jobs_with_a_gate_are_judged_by_it(client: TestClient, sqlite_database: Database) -> None:
    limits = {"perplexity_ratio": {"max": 2.0}}
    made = client.post("/jobs", json={**SMALLEST, "ratio": [0.2, 0.4], "gate": limits}).json()["items"]
    gate = {"passed": True, "criteria": [{"name": "perplexity_ratio", "value": 1.25, "max": 2.0, "passed": True}]}
    for job, size in zip(made, (80, 60), strict=True):
        report = {**a_report(size=size, worst=9.0), "gate": gate}
        run(sqlite_database, job["id"], lambda session, claim, report=report: succeed(session, claim, report=report))
    label = f"sweep%3D{made[0]['labels']['sweep']}"
    rows = rows_of(client.get(f"/ui/sweep?label={label}&most=2"))
    assert [row[-1] for row in rows[1:]] == ["yes", "yes, smallest"], "their gates pass, whatever the limit is"


def test_the_figures_as_a_file(client: TestClient, sqlite_database: Database) -> None:
    small, smaller, failed = a_sweep(client, sqlite_database)
    answer = client.get("/ui/sweep.csv?label=sweep%3Ddepth")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["id"] for row in rows] == [small, smaller, failed]
    assert [row["Weights on disk, result"] for row in rows] == ["80.0", "60.0", ""]
    assert (rows[0]["ratio"], rows[0]["removed_blocks"], rows[0]["Perplexity on other, result"]) == (
        "0.2",
        "12 13",
        "6.0",
    )


def test_a_file_without_some_of_the_jobs_is_not_made(
    client: TestClient, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_sweep(client, sqlite_database)
    monkeypatch.setattr(comparing, "_MOST_IN_A_FILE", 2)
    refused = client.get("/ui/sweep.csv?label=sweep%3Ddepth")
    assert (refused.status_code, "ore than 2 jobs have this label" in text_of(refused)) == (422, True)


def test_a_distance_that_is_no_number_is_shown_as_none(client: TestClient, sqlite_database: Database) -> None:
    for _ in range(2):
        report = {**a_report(size=80, worst=2.0), "texts": [], "images": [{"name": "x", "distance": "nan"}]}
        job = submit(client, labels={"team": "a"})
        run(sqlite_database, job, lambda session, claim, report=report: succeed(session, claim, report=report))
    assert client.get("/ui/sweep?label=team%3Da").status_code == 200


def test_the_form_submits_a_sweep(client: TestClient) -> None:
    form = {"csrf_token": token_of(client.get("/ui/new")), "key": "k", "model": "org/name", "private": "on"}
    form |= {"evaluate": "on", "ratio": "0.25, 0.5", "calibration": "builtin:pydoc-topics"}
    plan = client.post("/ui/plan", data=form)
    assert "2 jobs; this is the plan of the one that removes the most." in text_of(plan)
    done = client.post("/ui/new", data=form, follow_redirects=False)
    jobs = client.get("/jobs").json()["items"]
    label = jobs[0]["labels"]["sweep"]
    assert (done.status_code, done.headers["location"]) == (303, f"/ui/sweep?label=sweep={label}")
    assert sorted(job["spec"]["ratio"] for job in jobs) == [0.25, 0.5]
    page = text_of(client.get(done.headers["location"]))
    assert "appears once two jobs have a result" in page
    refused = client.post("/ui/new", data={**form, "key": "other", "ratio": "0.25, 2"})
    assert refused.status_code == 422 and "different numbers greater than 0 and less than 1" in text_of(refused)


def test_no_two_ticks_of_an_axis_have_one_text(client: TestClient, sqlite_database: Database) -> None:
    for size in (10001, 10005):
        job = submit(client, labels={"team": "a"})
        report = {**a_report(size=size, worst=2.0), "before": {**REPORTED["before"], "bytes": 20000}}
        run(sqlite_database, job, lambda session, claim, report=report: succeed(session, claim, report=report))
    texts = re.findall(r'<text x="[^"]+" y="287"[^>]*>([^<]+)<', client.get("/ui/sweep?label=team%3Da").text)
    assert "50.010 %" in texts
    assert len(texts) == len(set(texts)) > 2


def test_values_that_differ_by_rounding_alone_have_an_axis(client: TestClient, sqlite_database: Database) -> None:
    for worst in (1.331, 1.1**3):
        job = submit(client, labels={"team": "a"})
        report = a_report(size=80, worst=worst)
        run(sqlite_database, job, lambda session, claim, report=report: succeed(session, claim, report=report))
    page = client.get("/ui/sweep?label=team%3Da")
    assert (page.status_code, ">1.5<" in page.text) == (200, True)


def test_models_of_text_and_of_images_are_in_charts_of_their_own(client: TestClient, sqlite_database: Database) -> None:
    of_text, of_images = (a_report(size=80, worst=2.0) for _ in range(2))
    of_images |= {"texts": [], "images": [{"name": "x", "distance": 0.25}]}
    for report, charts in ((of_text, 0), (of_images, 0), (of_text, 2), (of_images, 4)):
        job = submit(client, labels={"team": "a"})
        run(sqlite_database, job, lambda session, claim, report=report: succeed(session, claim, report=report))
        page = client.get("/ui/sweep?label=team%3Da").text
        assert page.count('<figure class="chart">') == charts
    assert page.count("Distance of embeddings over size of the weights") == 2, "as its title and its name"


def test_no_chart_without_figures() -> None:
    assert charts_of([]) == []
