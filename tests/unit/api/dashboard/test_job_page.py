"""The page of a job: what it shows in each status, its figures, its forms, its stream."""

import json
import re
from collections.abc import Callable

import pytest
from httpx2 import Response
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.transitions import storable
from replaceme_core.runner.messages import Measured, Stage
from replaceme_core.settings import Settings
from replaceme_core.wording import json_safe
from tests.fixtures.api.pages import text_of, token_of
from tests.fixtures.api.requests import SMALLEST
from tests.fixtures.hostile.texts import TEXTS
from tests.fixtures.jobs.ledger import claim_job, succeed
from tests.fixtures.reports.shown import read_page

Ended = Callable[[Session, Claim], None]
MEASURED = (
    Measured(stage=Stage.CALIBRATE, name="tokens", value=512, unit="tokens"),
    Measured(stage=Stage.SELECT, name="distance", value=0.1234, unit="half turns", candidate="2-3"),
    Measured(stage=Stage.SELECT, name="distance", value=0.0567, unit="half turns", candidate="4-5"),
    Measured(stage=Stage.SELECT, name="held_out_loss", value=3.21, unit="nats", candidate="4-5"),
    Measured(stage=Stage.SELECT, name="estimated", value=1, unit="flag", candidate="4-5"),
    Measured(stage=Stage.SELECT, name="held_out_loss", value=3.11, unit="nats", candidate="2-3"),
    Measured(stage=Stage.SELECT, name="chosen", value=1, unit="flag", candidate="2-3"),
    Measured(stage=Stage.EVALUATE, name="before.perplexity", value=12.3456, unit="ratio"),
    Measured(stage=Stage.EVALUATE, name="after.perplexity", value=15.4321, unit="ratio"),
    Measured(stage=Stage.EVALUATE, name="before.bytes", value=269_060_552, unit="bytes"),
    Measured(stage=Stage.EVALUATE, name="after.bytes", value=212_000_000, unit="bytes"),
    Measured(stage=Stage.EVALUATE, name="before.tokens_per_second", value=450, unit="tokens/s"),
)


def submit(client: TestClient, **fields: object) -> str:
    return str(client.post("/jobs", json={**SMALLEST, **fields}).json()["id"])


def run(database: Database, job_id: str, end: Ended | None = None) -> None:
    """Claim the job, measure, write a log, and end it if `end` is given."""
    with database.session() as session:
        claim = claim_job(session, job_id, worker="w:1")
        attempts.record_progress(
            session, claim, stage=Stage.SELECT, overall=0.4, fraction=0.5, eta_seconds=75, eta_error_seconds=12
        )
        attempts.add_metrics(session, claim, MEASURED)
        attempts.add_log(session, claim, ["first line", "<b>loud</b> & last line"])
        if end is not None:
            end(session, claim)


def test_a_queued_job(client: TestClient) -> None:
    job = submit(client, labels={"team": "a"}, ratio=0.25)
    page = client.get(f"/ui/jobs/{job}")
    text = text_of(page)
    for shown in ("queued", "number 1 in the queue", "0.25 of the blocks", "builtin:pydoc-topics", "team=a", job):
        assert shown in text
    assert f'sse-connect="/ui/jobs/{job}/changes?after=1"' in page.text
    assert "Cancel this job" in text
    assert "Retry" not in text


def test_a_running_job(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)
    run(sqlite_database, job)
    page = client.get(f"/ui/jobs/{job}")
    text = text_of(page)
    for shown in ("running", "40 % done", "65 to 85 seconds left", "first line", "w:1"):
        assert shown in text
    assert re.search(r'aria-current="step"><th scope="row">select</th>', page.text)
    assert "&lt;b&gt;loud&lt;/b&gt; &amp; last line" in page.text
    part = client.get(f"/ui/jobs/{job}/live")
    assert "40 % done" in text_of(part)
    assert "<html" not in part.text


def test_an_error_beyond_the_estimate_is_not_shown_as_one(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)
    with sqlite_database.session() as session:
        claim = claim_job(session, job, worker="w:1")
        attempts.record_progress(
            session, claim, stage=Stage.SELECT, overall=0.1, fraction=0.1, eta_seconds=75, eta_error_seconds=750
        )
    assert "up to 14 minutes left" in text_of(client.get(f"/ui/jobs/{job}"))


def test_every_figure_is_one_of_the_database(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)
    run(sqlite_database, job, succeed)
    page = client.get(f"/ui/jobs/{job}")
    rows = [
        [text_of_cell(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL)]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", page.text, flags=re.DOTALL)
    ]
    for row in (
        ["Perplexity", "12.35", "15.43", "+25.0 %"],
        ["Weights on disk", "269 MB", "212 MB", "-21.2 %"],
        ["Tokens per second with all logits", "450", "–", ""],
        ["Blocks", "Distance before the fit (half turns)", "Loss on held-out tokens (nats)"],
        ["2-3 (chosen)", "0.1234", "3.1100"],
        ["4-5", "0.0567", "~3.2100"],
        ["calibrate", "tokens", "", "512 tokens"],
    ):
        assert row in rows, rows
    assert rows.index(["2-3 (chosen)", "0.1234", "3.1100"]) < rows.index(["4-5", "0.0567", "~3.2100"])


def text_of_cell(cell: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", cell).split())


def test_a_job_that_has_succeeded(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)
    run(sqlite_database, job, succeed)
    page = client.get(f"/ui/jobs/{job}")
    text = text_of(page)
    assert "The result is org/model-small , revision bbbbbbbbbbbb" in text
    assert "2 of 5 blocks removed: 12-13" in text
    assert "sse-connect" not in page.text
    assert "Retry" in text
    assert "Cancel" not in text
    report = client.get(f"/ui/jobs/{job}/report.json")
    assert report.headers["content-type"] == "application/json"
    assert report.json() == json_safe(client.get(f"/jobs/{job}/report").json())


def test_a_job_that_has_failed_says_why(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)
    run(
        sqlite_database,
        job,
        lambda session, claim: attempts.fail(session, claim, code="out_of_memory", message="<i>too big</i>"),
    )
    page = client.get(f"/ui/jobs/{job}")
    assert "&lt;i&gt;too big&lt;/i&gt;" in page.text
    assert "out_of_memory" in page.text
    assert "stopped at 50 %" in text_of(page)


def test_cancelling(client: TestClient, sqlite_database: Database) -> None:
    queued, running = submit(client), submit(client)
    run(sqlite_database, running)
    for job, shown in ((queued, "cancelled"), (running, "cancel requested; the worker is stopping it")):
        form = {"csrf_token": token_of(client.get(f"/ui/jobs/{job}"))}
        response = client.post(f"/ui/jobs/{job}/cancel", data=form, follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (303, f"/ui/jobs/{job}")
        page = client.get(f"/ui/jobs/{job}")
        assert shown in text_of(page)
        assert "Cancel this job" not in page.text
    assert client.get(f"/jobs/{queued}").json()["status"] == "cancelled"


def test_retrying_twice_with_one_form_makes_one_job(client: TestClient) -> None:
    job = submit(client)
    client.post(f"/jobs/{job}/cancel")
    page = client.get(f"/ui/jobs/{job}")
    key = re.search(r'name="key" value="([^"]+)"', page.text)
    assert key is not None
    form = {"csrf_token": token_of(page), "key": key[1]}
    first, second = (client.post(f"/ui/jobs/{job}/retry", data=form, follow_redirects=False) for _ in range(2))
    assert first.status_code == 303
    assert first.headers["location"] == second.headers["location"]
    new = first.headers["location"].rpartition("/")[2]
    assert client.get(f"/jobs/{new}").json()["retry_of"] == job
    assert f"/ui/compare?id={job}&amp;id={new}" in client.get(f"/ui/jobs/{new}").text
    again = re.search(r'name="key" value="([^"]+)"', client.get(f"/ui/jobs/{job}").text)
    assert again is not None
    assert again[1] != key[1]


def test_the_button_says_where_the_result_of_a_retry_goes(client: TestClient) -> None:
    for output, said in (({}, "Retry (new result)"), ("local/mine", "Retry (result goes to local/mine again)")):
        job = submit(client, output=output)
        client.post(f"/jobs/{job}/cancel")
        assert said in text_of(client.get(f"/ui/jobs/{job}"))


def test_what_cannot_be_done_any_more_is_explained(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)
    token = token_of(client.get(f"/ui/jobs/{job}"))
    run(sqlite_database, job, succeed)
    page = client.post(f"/ui/jobs/{job}/cancel", data={"csrf_token": token})
    assert page.status_code == 409
    assert "Load its page again" in text_of(page)


def test_the_stream_of_a_finished_job_ends(client: TestClient) -> None:
    job = submit(client)
    client.post(f"/jobs/{job}/cancel")
    response = client.get(f"/ui/jobs/{job}/changes?after=1")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.split("\n\n") == ["event: changed\ndata:", "event: ended\ndata:", ""]


def test_webhooks_are_listed_without_their_secret(client: TestClient, settings: Settings) -> None:
    body = {**SMALLEST, "webhook": {"url": "https://hooks.example.com/a?b=<c>"}}
    added = client.post("/jobs", json=body).json()
    page = client.get(f"/ui/jobs/{added['id']}")
    assert "https://hooks.example.com/a?b=&lt;c&gt;" in page.text
    assert added["webhook"]["secret"] not in page.text


def test_all_that_is_sent_is_json_or_a_page(client: TestClient) -> None:
    report = client.get(f"/ui/jobs/{submit(client)}/report.json")
    assert report.status_code == 404
    with pytest.raises(json.JSONDecodeError):
        report.json()
    assert "<h1>" in report.text


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

    plain = [(tag, *given) for tag, given in read_page(page_with("word").text).tags]
    for text in map(storable, TEXTS.values()):
        page = page_with(text)
        assert [(tag, *given) for tag, given in read_page(page.text).tags] == plain
        assert text_of(page).count(" ".join(text.split())) >= 4
