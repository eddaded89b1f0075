"""What a running job shows of the time that is left, and what a client may see of its log."""

import time

import pytest
from pydantic import SecretStr

from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database
from replaceme_core.plan.eta import Course, weights_of
from replaceme_core.runner.messages import Advanced, Measured, Resolved, Stage, StageStarted
from replaceme_core.settings import Settings
from tests.fixtures.jobs.ledger import Ledger
from worker.progress_writer import HIDDEN, ProgressWriter, redacted, secrets_of


def test_the_time_left_is_news_while_a_stage_reports_nothing(sqlite_database: Database) -> None:
    ledger, now = Ledger(sqlite_database), 1000.0
    job_id = ledger.add()
    claim, spec = ledger.claim(job_id), ledger.get(job_id).spec
    course = Course(weights=weights_of(spec), started=now)
    writer = ProgressWriter(sqlite_database, claim, course, clock=lambda: now)

    def left() -> tuple[float, float]:
        writer.flush()
        job = ledger.get(job_id)
        assert job.progress.eta_seconds is not None
        assert job.progress.eta_error_seconds is not None
        return job.progress.eta_seconds, job.progress.eta_error_seconds

    expected = {Stage.CALIBRATE: 60.0, Stage.SELECT: 20.0, Stage.SAVE: 20.0}
    writer.note(Resolved(spec=spec, expected=expected))
    writer.note(StageStarted(stage=Stage.CALIBRATE))
    assert left()[0] == 100
    now += 30
    writer.note(Advanced(stage=Stage.CALIBRATE, fraction=0.5))
    assert left()[0] == 70
    now += 1
    assert left()[0] == 70, "not each second is worth a write"
    now += 19
    assert left()[0] == 50, "half of the stage takes 30 seconds"
    now += 10
    due = left()
    for _ in range(3):
        now += 600
        later = left()
        assert later[0] > due[0]
        assert later[1] > due[1] + 500
        due = later
    assert ledger.history(job_id).count("stage") == 1, "no news of the stage itself"


def test_from_the_second_attempt_on_the_history_says_what_was_resumed_from(ledger: Ledger) -> None:
    job_id = ledger.add()
    ledger.release(ledger.claim(job_id))
    claim, course = ledger.claim(job_id), Course(weights=weights_of(ledger.get(job_id).spec), started=0.0)
    writer = ProgressWriter(ledger.database, claim, course)
    writer.note(StageStarted(stage=Stage.SOLVE, resumed_from=Stage.SOLVE))
    writer.note(Advanced(stage=Stage.SOLVE, fraction=0.5))
    writer.flush()
    assert ledger.events(job_id)[-1].data == {"stage": "solve", "resumed_from": "solve"}


def test_a_line_that_comes_while_an_equal_one_is_written_is_kept(ledger: Ledger) -> None:
    job_id = ledger.add()
    claim, course = ledger.claim(job_id), Course(weights=weights_of(ledger.get(job_id).spec), started=0.0)
    writer = ProgressWriter(ledger.database, claim, course)
    writer.log("{")
    writer.log("}")
    writer.flush(lambda _: writer.log("}"))
    writer.flush()
    with ledger.database.session(read_only=True) as session:
        lines = reading.log(session, job_id, owner="someone").items
    assert [line.text for line in lines] == ["{", "}", "}"]


def test_a_runner_cannot_fill_the_database_with_metrics(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.progress_writer.MOST_METRICS", 3)
    job_id = ledger.add()
    claim, course = ledger.claim(job_id), Course(weights=weights_of(ledger.get(job_id).spec), started=0.0)
    writer = ProgressWriter(ledger.database, claim, course)
    for number in range(5):
        writer.note(Measured(stage=Stage.SOLVE, name="loss", value=number, unit="nats"))
        writer.flush()
    with ledger.database.session(read_only=True) as session:
        metrics = reading.metrics(session, job_id, owner="someone")
    assert [one.value for one in metrics] == [0, 1, 2]


SETTINGS = Settings(
    _env_file=None,
    hub_write_token=SecretStr("a-token-without-a-prefix"),
    database_url="postgresql+psycopg://me:p%40ssword@db.internal/ledger",
)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("loading weights: 100%", "loading weights: 100%"),
        ("tokens 32768 of 65536", "tokens 32768 of 65536"),
        (" 10%|#   |\r 90%|####|\r100%|####|", "100%|####|"),
        ("\x1b[31mwarning\x1b[0m: slow", "warning: slow"),
        ("\x1b[31mhf_abcdefghijklmnop\x1b[0m", HIDDEN),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("read /srv/data/models/config.json", "read config.json"),
        ("hf_abcdefghijklmnop is no token", f"{HIDDEN} is no token"),
        ("sent a-token-without-a-prefix", f"sent {HIDDEN}"),
        ("cannot reach p@ssword or p%40ssword", f"cannot reach {HIDDEN} or {HIDDEN}"),
        ("GET https://me:secret1@host/x", f"GET https://{HIDDEN}@host/x"),
        ("GET https://s3/x?X-Amz-Signature=abcdef&part=1", f"GET https://s3/x?{HIDDEN}&part=1"),
        ("Authorization: Bearer abc.def", f"Authorization: {HIDDEN}"),
        ("api_key=abc", f"api_key={HIDDEN}"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", HIDDEN),
        (f"rmk_{'A1b2C3d' * 7} is a key", f"{HIDDEN} is a key"),
        ("", ""),
    ],
)
def test_what_is_left_of_a_line(line: str, shown: str) -> None:
    assert redacted(line, known=secrets_of(SETTINGS)) == shown


@pytest.mark.parametrize("line", ["?" * 2048 + "key" * 682, "?key" * 1024])
def test_a_line_that_was_made_to_take_long_takes_no_time(line: str) -> None:
    began = time.process_time()
    redacted(line, known=secrets_of(SETTINGS))
    assert time.process_time() - began < 0.3
