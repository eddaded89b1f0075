"""The page of a job: what it shows in each status, its figures, its forms."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from httpx2 import Response
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from api.dashboard.rendering import between
from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.transitions import storable
from replaceme_core.report import view
from replaceme_core.report.reading import Report
from replaceme_core.runner.messages import Measured, Stage
from tests.fixtures.api.pages import rows_of, text_of, token_of
from tests.fixtures.api.requests import submit
from tests.fixtures.hostile.texts import TEXTS
from tests.fixtures.jobs.ledger import claim_job, succeed
from tests.fixtures.jobs.measured import REPORTED, run
from tests.fixtures.reports.shown import read_page

READS_ITSELF = 'hx-swap="outerHTML" hx-trigger="every 2s"'


def opens(page: Response) -> list[str]:
    """The dialogs that buttons of the page open."""
    return re.findall(r'data-opens="([^"]+)"', page.text)


def test_a_job_in_the_queue_running_and_done(client: TestClient, sqlite_database: Database) -> None:
    body = {"labels": {"team": "a"}, "webhook": {"url": "https://hooks.example.com/a?b=<c>"}}
    job = submit(client, **body)
    page = client.get(f"/ui/jobs/{job}")
    text = text_of(page)
    for shown in ("queued", "number 1 in the queue", "0.25 of the blocks", "builtin:pydoc-topics", "team=a", job):
        assert shown in text
    assert READS_ITSELF in page.text
    assert "https://hooks.example.com/a?b=&lt;c&gt;" in page.text and "whsec_" not in page.text
    assert (opens(page), "Retry" in text) == (["cancel"], False)
    missing = client.get(f"/ui/jobs/{job}/report.json")
    assert (missing.status_code, "<h1>" in missing.text) == (404, True)
    assert "has no report: it is queued" in text_of(missing) and "deleted" not in text_of(missing)

    run(sqlite_database, job)
    page = client.get(f"/ui/jobs/{job}")
    for shown in ("running", "40 % done", "65 to 85 seconds left", "first line", "w:1"):
        assert shown in text_of(page)
    assert re.search(r'aria-current="step"><th scope="row">select</th>', page.text)

    done = submit(client)
    run(sqlite_database, done, succeed)
    page = client.get(f"/ui/jobs/{done}")
    text = text_of(page)
    assert "The result is org/model-small , revision bbbbbbbbbbbb" in text
    assert "2 of 5 blocks removed: 12-13" in text
    assert (READS_ITSELF in page.text, "Retry" in text, opens(page)) == (False, True, ["delete"])


def test_a_job_without_a_report_shows_what_was_measured_last(
    client: TestClient, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(client)
    run(sqlite_database, job)
    rows = rows_of(client.get(f"/ui/jobs/{job}"))
    for row in (
        ["calibrate", "tokens", "", "512 tokens"],
        ["select", "held_out_loss", "2-3", "3.11 nats"],
        ["evaluate", "after.perplexity", "", "15.43"],
        ["evaluate", "after.bytes", "", "212 MB"],
    ):
        assert row in rows, rows
    monkeypatch.setattr("api.dashboard.jobs.SHOWN_METRICS", 1)
    page = client.get(f"/ui/jobs/{job}")
    assert rows_of(page)[-1] == ["evaluate", "text_agreement", "builtin:prose", "0.75"]
    assert "14 values" in text_of(page) and "The last 1 of them" in text_of(page)


def test_a_job_with_a_report_shows_its_tables(client: TestClient, sqlite_database: Database) -> None:
    """The same rows as the page of the report, whatever metrics say."""
    job = submit(client)
    run(sqlite_database, job, lambda session, claim: succeed(session, claim, report=REPORTED))
    rows = rows_of(client.get(f"/ui/jobs/{job}"))
    for table in (view.both_models(Report(REPORTED)), view.texts(Report(REPORTED))):
        assert table is not None
        for row in table.only().rows:
            assert [view.plain(cell) for cell in row] in rows
    assert ["Tokens written per second", "20 (10 to 30)", "26 (16 to 36)", "not significant"] in rows
    assert ["Weights on disk", "269 MB", "212 MB", "-21.2 %"] not in rows


def test_the_figures_that_tell_most_come_first(client: TestClient, sqlite_database: Database) -> None:
    size = {"before": 100, "after": 80}
    report = {
        **REPORTED,
        **{side: {**REPORTED[side], "bytes": size[side]} for side in size},
        "texts": [*REPORTED["texts"], {"name": "other", "before": 4.0, "after": 8.0, "ratio": 2.0}],
        "answers": [{"prompt": "Why?", "before": "Because.", "after": "So."}],
        "auto_class": "AutoModelForCausalLM",
    }
    shown = [(one.label, view.plain(one.value), one.is_better) for one in view.headlines(Report(report))]
    assert shown == [
        ("Perplexity", "1.250 times", False),
        ("Weights on disk", "-20.0 %", True),
        ("Tokens written per second", "not significant", None),
        ("Worst on other text", "2.000 times", False),
    ]
    job = submit(client)
    run(sqlite_database, job, lambda session, claim: succeed(session, claim, report=report))
    page = client.get(f"/ui/jobs/{job}")
    text = text_of(page)
    for words in ("1.250 times worse", "-20.0 % better", "AutoModelForCausalLM.from_pretrained("):
        assert words in text
    assert ["Why?", "Because.", "So."] in rows_of(page)
    assert 'data-copies="snippet"' in page.text
    assert re.search(rf"curl -H [^<]* http://testserver/jobs/{job}/report<", page.text), "it can be pasted"


def test_the_beginning_of_an_id_leads_to_the_job(client: TestClient) -> None:
    job = submit(client)
    found = client.get(f"/ui/jobs/{job[:8]}", follow_redirects=False)
    assert (found.status_code, found.headers["location"]) == (303, f"/ui/jobs/{job}")
    for beginning in ("0000", job[:3], "xyzw1234"):
        assert client.get(f"/ui/jobs/{beginning}").status_code == 404
    listed = client.get("/jobs", params={"id_prefix": job[:8]}).json()["items"]
    assert [one["id"] for one in listed] == [job]
    assert client.get("/jobs", params={"id_prefix": "%"}).status_code == 422


@pytest.mark.usefixtures("brief_reports")
def test_a_plot_is_sent_once_and_the_report_leads_back(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)
    layers = [{"block": number, "distance": 0.1} for number in range(4)]
    report = {**REPORTED, "layers": layers, "removed_blocks": [2], "kept_blocks": [0, 1, 3]}
    run(sqlite_database, job, lambda session, claim: succeed(session, claim, report=report))
    path = f"/ui/jobs/{job}/plots/influence.svg"
    plot = client.get(path)
    assert (plot.status_code, plot.headers["cache-control"]) == (200, "private, no-cache")
    again = client.get(path, headers={"If-None-Match": plot.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == plot.headers["content-security-policy"]
    page = client.get(f"/ui/jobs/{job}/report")
    assert f'<a href="../{job}">Back to the job</a>' in page.text
    assert "Back to the job" not in client.get(f"/jobs/{job}/report", headers={"Accept": "text/html"}).text


def test_deleting(client: TestClient, sqlite_database: Database) -> None:
    job, waiting = submit(client), submit(client)
    run(sqlite_database, job, succeed)
    form = {"csrf_token": token_of(client.get(f"/ui/jobs/{job}"))}
    refused = client.post(f"/ui/jobs/{waiting}/delete", data=form)
    assert (refused.status_code, client.get(f"/ui/jobs/{waiting}").status_code) == (409, 200)
    done = client.post(f"/ui/jobs/{job}/delete", data=form, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/ui/jobs")
    assert client.get(f"/ui/jobs/{job}").status_code == 404


def test_the_stage_in_which_a_job_failed_is_not_done(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)

    def fail(session: Session, claim: Claim) -> None:
        step = attempts.Step(stage=Stage.EVALUATE, overall=0.9, fraction=1.0, eta_seconds=None)
        attempts.record_progress(session, claim, step)
        attempts.fail(session, claim, code="gate_rejected", message="the result misses its gate")

    run(sqlite_database, job, fail)
    rows = {row[0]: row[1] for row in rows_of(client.get(f"/ui/jobs/{job}")) if len(row) == 3}
    assert (rows["select"], rows["evaluate"]) == ("done", "failed")


def test_what_began_by_a_clock_that_is_ahead_has_not_taken_less_than_no_time() -> None:
    """A stage begins by the clock of the database, and has lasted until now by that of this machine."""
    assert between(datetime.now(UTC) + timedelta(seconds=30), None) == "0.0 s"


def test_cancelling(client: TestClient, sqlite_database: Database) -> None:
    queued, running = submit(client), submit(client)
    run(sqlite_database, running)
    for job, shown in ((queued, "cancelled"), (running, "cancel requested; the worker is stopping it")):
        form = {"csrf_token": token_of(client.get(f"/ui/jobs/{job}"))}
        response = client.post(f"/ui/jobs/{job}/cancel", data=form, follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (303, f"/ui/jobs/{job}")
        page = client.get(f"/ui/jobs/{job}")
        assert shown in text_of(page)
        assert "cancel" not in opens(page)
    done = submit(client)
    run(sqlite_database, done, succeed)
    again = client.post(f"/ui/jobs/{done}/cancel", data=form)
    assert (again.status_code, "Load its page again" in text_of(again)) == (409, True)


def test_retrying_twice_with_one_form_makes_one_job(client: TestClient) -> None:
    mine, job = submit(client, output="local/mine"), submit(client)
    for one, shown in ((mine, "Retry (result goes to local/mine again)"), (job, "Retry (new result)")):
        client.post(f"/jobs/{one}/cancel")
        page = client.get(f"/ui/jobs/{one}")
        assert shown in text_of(page)
    form = {"csrf_token": token_of(page), "key": key_in(page)}
    first, second = (client.post(f"/ui/jobs/{job}/retry", data=form, follow_redirects=False) for _ in range(2))
    assert first.status_code == 303
    assert first.headers["location"] == second.headers["location"]
    new = first.headers["location"].rpartition("/")[2]
    assert client.get(f"/jobs/{new}").json()["retry_of"] == job
    assert f"/ui/compare?id={job}&amp;id={new}" in client.get(f"/ui/jobs/{new}").text
    assert key_in(client.get(f"/ui/jobs/{job}")) != form["key"]


def key_in(page: Response) -> str:
    """The idempotency key of the form on a page."""
    found = re.search(r'name="key" value="([^"]+)"', page.text)
    assert found is not None
    return found[1]


def test_text_of_strangers_is_text(client: TestClient, sqlite_database: Database) -> None:
    """The tags of the page are those of a job with plain words in these places."""

    def page_with(text: str) -> Response:
        job = submit(client)
        with sqlite_database.session() as session:
            claim = claim_job(session, job, worker=text)
            chosen = Measured(stage=Stage.SELECT, name="chosen", value=1, unit="flag", candidate=text)
            other = Measured(stage=Stage.SELECT, name=text, value=1, unit=text, candidate=text)
            attempts.add_metrics(session, claim, [chosen, other])
            attempts.add_log(session, claim, [text])
            attempts.fail(session, claim, code="broken_model", message=text)
        return client.get(f"/ui/jobs/{job}")

    plain = page_with("word")
    assert "Code: broken_model" in text_of(plain)
    tags = [(tag, *given) for tag, given in read_page(plain.text).tags]
    for text in map(storable, TEXTS.values()):
        page = page_with(text)
        assert [(tag, *given) for tag, given in read_page(page.text).tags] == tags
        assert text_of(page).count(" ".join(text.split())) >= 4
