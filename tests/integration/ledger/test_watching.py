"""The order of all events, the log, the workers and the deletion of old jobs, on both databases."""

import threading
from collections import Counter
from functools import partial

import pytest
from sqlalchemy import select, update

from benchmarks.harness.jobs import owner_of
from replaceme_core.errors import JobNotFound, LeaseLost, StaleTransition
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import changes, reading
from replaceme_core.ledger.attempts import KEPT_LINES
from replaceme_core.ledger.database import now
from replaceme_core.ledger.records import Claim, WorkerReport
from replaceme_core.ledger.states import EventType
from replaceme_core.ledger.sweep import delete_finished
from replaceme_core.ledger.tables import JobEventRow, JobRow, StageTotalRow
from replaceme_core.ledger.watching import (
    BOUNDS,
    REMEMBERED_SECONDS,
    Workers,
    event_totals,
    events_after,
    number_all,
    stage_totals,
)
from replaceme_core.runner.messages import Stage
from replaceme_core.runner.sandbox import SandboxMode
from tests.fixtures.jobs.ledger import Ledger, at_once


def test_positions_rise_for_readers_while_many_write_and_number(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    database, seen = ledger.database, list[tuple[int, str, int]]()
    over = threading.Event()

    def write() -> None:
        for _ in range(8):
            ledger.fail(ledger.add())

    def number() -> None:
        while not over.is_set():
            number_all(database)

    writers = [threading.Thread(target=write) for _ in range(3)]
    numberers = [threading.Thread(target=number, daemon=True) for _ in range(2)]
    for thread in (*writers, *numberers):
        thread.start()
    last = 0
    while True:
        ended = not any(thread.is_alive() for thread in writers)
        if ended:
            number_all(database)
        with database.session(read_only=True) as session:
            found = events_after(session, last, limit=1000, owner=None)
        seen += [(each.position, each.event.job_id, each.event.seq) for each in found]
        last = found[-1].position if found else last
        if ended and not found and len(seen) == 72:
            break
    over.set()
    for thread in (*writers, *numberers):
        thread.join(timeout=60)
    assert [position for position, _, _ in seen] == sorted({position for position, _, _ in seen})
    for job_id in {job_id for _, job_id, _ in seen}:
        assert [seq for _, of_job, seq in seen if of_job == job_id] == [1, 2, 3]
    with database.session(read_only=True) as session:
        events, stages = event_totals(session), stage_totals(session)
    assert events == {("created", ""): 24, ("claimed", ""): 24, ("failed", "out_of_memory"): 24}
    assert stages == {}


def test_a_clock_that_was_set_back_does_not_turn_a_history_around(ledger: Ledger) -> None:
    job_id = ledger.add()
    ledger.fail(job_id)
    with ledger.database.session() as session:
        session.execute(update(JobEventRow).where(JobEventRow.seq == 3).values(at=now(plus_seconds=-60)))
    number_all(ledger.database)
    with ledger.database.session(read_only=True) as session:
        assert [each.event.seq for each in events_after(session, 0, limit=10, owner=None)] == [1, 2, 3]


def test_the_last_lines_of_a_log_are_kept(ledger_on_both: Ledger) -> None:
    ledger = ledger_on_both
    job_id = ledger.add()
    claim = ledger.claim(job_id)
    for start in range(0, KEPT_LINES + 300, 100):
        ledger.log(claim, *(f"line {start + number}\0" for number in range(100)))
    with ledger.database.session(read_only=True) as session:
        page = reading.log(session, job_id, limit=2 * KEPT_LINES, owner="someone")
    assert [line.text for line in page.items] == [f"line {number}" for number in range(300, KEPT_LINES + 300)]
    assert page.items[0].number == 301
    ledger.release(claim)
    with pytest.raises(LeaseLost):
        ledger.log(claim, "late")


def test_workers_that_have_ended_or_were_lost_long_ago_are_forgotten(ledger: Ledger) -> None:
    report = WorkerReport(
        name="h:1", host="h", kinds=tuple(WorkerKind), device="x", sandbox=SandboxMode.NONE, processes=(7,)
    )
    with ledger.database.session() as session:
        workers = Workers(session)
        workers.report(report, alive_seconds=-REMEMBERED_SECONDS - 1)
        assert [worker.alive for worker in workers.list(owner="ada")] == [False]
        workers.forget_lost()
        assert workers.list(owner="ada") == ()
        workers.report(report, alive_seconds=60)
        workers.forget_lost()
        assert [worker.alive for worker in workers.list(owner="ada")] == [True]
        workers.remove("h:1")
        assert workers.list(owner="ada") == ()


def test_jobs_are_deleted_by_age_when_they_have_finished(ledger: Ledger) -> None:
    old, young, running = ledger.add(), ledger.add(), ledger.add()
    ledger.fail(old)
    ledger.fail(young)
    ledger.claim(running)
    with ledger.database.session() as session:
        session.execute(update(JobRow).where(JobRow.id == old).values(finished_at=now(plus_seconds=-100)))
        assert delete_finished(session, older_than_seconds=60, limit=10) == 1
        assert set(session.scalars(select(JobRow.id))) == {young, running}
        assert old not in set(session.scalars(select(JobEventRow.job_id)))
        with pytest.raises(StaleTransition):
            changes.delete_job(session, running, owner="someone")
        with pytest.raises(JobNotFound):
            changes.delete_job(session, young, owner="somebody else")


def test_a_job_that_is_deleted_right_after_its_end_counts(ledger_on_both: Ledger) -> None:
    """Its events may have no positions yet, or another process gives them at the same moment."""
    ledger = ledger_on_both
    with ledger.database.session(read_only=True) as session:
        before = Counter(event_totals(session))
    for _ in range(10):
        job_id = ledger.add()
        ledger.cancel(job_id)

        def delete(job_id: str = job_id) -> None:
            with ledger.database.session() as session:
                changes.delete_job(session, job_id, owner=owner_of(session, job_id))

        at_once(delete, partial(number_all, ledger.database))
    with ledger.database.session(read_only=True) as session:
        counted = Counter(event_totals(session)) - before
    assert counted == {("created", ""): 10, ("cancelled", ""): 10}


def test_stages_are_counted_once_by_how_long_they_took(ledger_on_both: Ledger) -> None:
    """Across numberings and attempts; a job that is deleted is still counted."""
    ledger = ledger_on_both
    database, job_id = ledger.database, ledger.add()

    def step(claim: Claim, stage: Stage, *, seconds_ago: float) -> None:
        ledger.progress(claim, stage)
        with database.session() as session:
            session.execute(
                update(JobEventRow)
                .where(
                    JobEventRow.job_id == job_id, JobEventRow.type == EventType.STAGE, JobEventRow.position.is_(None)
                )
                .values(at=now(plus_seconds=-seconds_ago))
            )
        number_all(database)

    first = ledger.claim(job_id)
    step(first, Stage.DOWNLOAD, seconds_ago=4000)
    step(first, Stage.CALIBRATE, seconds_ago=3960)
    ledger.release(first)
    second = ledger.claim(job_id)
    step(second, Stage.DOWNLOAD, seconds_ago=0)
    number_all(database)
    ledger.release(second)
    ledger.cancel(job_id)
    number_all(database)
    number_all(database)
    with database.session() as session:
        changes.delete_job(session, job_id, owner="someone")
        events, stages = event_totals(session), stage_totals(session)
        groups = {(row.stage, row.up_to): row.count for row in session.scalars(select(StageTotalRow))}
    assert groups == {("download", 60): 1, ("download", 1): 1, ("calibrate", 14400): 1}
    assert stages["download"].counts == (1, 0, 0, 1, *(0,) * (len(BOUNDS) - 3))
    assert 39 < stages["download"].seconds < 42
    assert 3900 < stages["calibrate"].seconds < 4000
    assert events == {("created", ""): 1, ("claimed", ""): 2, ("released", ""): 2, ("cancelled", ""): 1}
