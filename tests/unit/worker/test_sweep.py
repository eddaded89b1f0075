import errno
import socket
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import select, update

from benchmarks.harness.processes import wait_until
from benchmarks.harness.servers import free_port
from benchmarks.harness.specs import a_spec
from replaceme_core.errors import DatabaseFull, QueueUnreachable
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.database import now
from replaceme_core.ledger.records import IdempotencyKey
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import IdempotencyKeyRow, JobRow
from replaceme_core.ledger.watching import Workers, event_totals
from replaceme_core.settings import Settings
from tests.fixtures.jobs.ledger import Ledger
from worker.sweep import Sweep
from worker.workspace import checkpoints_of, jobs_with_checkpoints


@pytest.fixture
def settings(sqlite_url: str, tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", database_url=sqlite_url, sweep_seconds=60)


def sweep_of(settings: Settings, enqueued: list[str] | None = None, *, free: bool = True) -> Sweep:
    """A sweep that notes the jobs that it enqueues."""
    noted = [] if enqueued is None else enqueued
    return Sweep(
        settings=settings, enqueue=lambda job_id, worker_kind: noted.append(job_id), has_free_slot=lambda: free
    )


def old_job(ledger: Ledger) -> str:
    """A queued job for which no message was sent for an hour."""
    job_id = ledger.add()
    with ledger.database.session() as session:
        session.execute(update(JobRow).values(enqueued_at=now(plus_seconds=-3600)))
    return job_id


def test_a_worker_with_a_free_slot_enqueues_a_job_that_waits_and_not_again_at_once(
    settings: Settings, ledger: Ledger
) -> None:
    enqueued: list[str] = []
    job_id = old_job(ledger)
    sweep_of(settings, enqueued, free=False).sweep()
    assert enqueued == []
    sweep = sweep_of(settings, enqueued)
    sweep.sweep()
    sweep.sweep()
    assert enqueued == [job_id]


def test_a_sweep_at_work_ends_before_the_worker_is_taken_off_the_list(settings: Settings, ledger: Ledger) -> None:
    begun = threading.Event()

    def process_ids() -> list[int]:
        begun.set()
        time.sleep(0.3)
        return [1]

    sweep_of(settings).stop()  # one that was never started, too
    sweep = Sweep(
        settings=settings,
        enqueue=lambda job_id, kind: None,
        has_free_slot=lambda: False,
        worker_kinds=(WorkerKind.CPU,),
        process_ids=process_ids,
    )
    sweep.sweep()
    with ledger.database.session(read_only=True) as session:
        (listed,) = Workers(session).list(owner="tests")
    assert (listed.host, listed.kinds) == (socket.gethostname(), (WorkerKind.CPU,))
    begun.clear()
    sweep.start()
    assert begun.wait(timeout=20)
    sweep.stop()
    with ledger.database.session(read_only=True) as session:
        assert Workers(session).list(owner="tests") == ()


def test_it_requeues_an_expired_lease_and_enqueues_the_job_after_a_pause(settings: Settings, ledger: Ledger) -> None:
    enqueued: list[str] = []
    job_id = old_job(ledger)
    ledger.claim(job_id, lease_seconds=-1)
    sweep = sweep_of(settings, enqueued)
    sweep.sweep()
    assert enqueued == []
    assert ledger.status(job_id) is JobStatus.QUEUED
    with ledger.database.session() as session:
        session.execute(update(JobRow).values(not_before=now(plus_seconds=-1)))
    sweep.sweep()
    sweep.sweep()
    assert enqueued == [job_id]


def test_it_fails_a_job_that_waited_too_long(settings: Settings, ledger: Ledger) -> None:
    job_id = ledger.add_spec(a_spec(max_queue_seconds=60))
    with ledger.database.session() as session:
        session.execute(update(JobRow).values(deadline_at=now(plus_seconds=-1)))
    sweep_of(settings).sweep()
    assert ledger.history(job_id) == ["created", "failed"]


def test_it_deletes_old_idempotency_keys(settings: Settings, ledger: Ledger) -> None:
    for key, seconds in (("old", -1), ("new", 60)):
        ledger.add_spec(a_spec(), idempotency_key=IdempotencyKey(key=key, fingerprint="f", keep_seconds=seconds))
    sweep_of(settings, free=False).sweep()
    with ledger.database.session(read_only=True) as session:
        assert session.scalars(select(IdempotencyKeyRow.key)).all() == ["new"]


def test_old_jobs_that_it_deletes_have_been_counted(settings: Settings, ledger: Ledger) -> None:
    """They may have ended right before the last worker did, so that no sweep has seen their ends."""
    job_id = ledger.add()
    ledger.cancel(job_id)
    with ledger.database.session() as session:
        session.execute(update(JobRow).values(finished_at=now(plus_seconds=-100)))
    sweep_of(settings.model_copy(update={"retention_seconds": 60})).sweep()
    with ledger.database.session(read_only=True) as session:
        assert session.scalars(select(JobRow.id)).all() == []
        assert event_totals(session) == {("created", ""): 1, ("cancelled", ""): 1}


def test_it_removes_abandoned_directories_while_the_database_is_unreachable(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, database_url=f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none")
    abandoned = settings.workspace / "job-1-abc"
    abandoned.mkdir(parents=True)
    sweep_of(settings).sweep()
    assert not abandoned.exists()


def test_a_broker_that_is_unreachable_does_not_stop_it(settings: Settings, ledger: Ledger) -> None:
    tries: list[str] = []

    def enqueue(job_id: str, worker_kind: WorkerKind | None) -> None:
        tries.append(job_id)
        if len(tries) < 3:
            raise QueueUnreachable("away")

    job_id = old_job(ledger)
    often = settings.model_copy(update={"sweep_seconds": 0.05})
    sweep = Sweep(settings=often, enqueue=enqueue, has_free_slot=lambda: True)
    sweep.start()
    try:
        wait_until(lambda: len(tries) >= 3, seconds=10, what="three tries")
    finally:
        sweep.stop()
        sweep.join(timeout=10)
    assert set(tries) == {job_id}
    assert not sweep.is_alive()


def test_a_step_that_fails_does_not_stop_the_steps_after_it(
    settings: Settings, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    enqueued: list[str] = []

    def fail() -> list[int]:
        raise KeyError("a mistake")

    job_id = old_job(ledger)
    Sweep(
        settings=settings,
        enqueue=lambda job_id, worker_kind: enqueued.append(job_id),
        has_free_slot=lambda: True,
        worker_kinds=(WorkerKind.CPU,),
        process_ids=fail,
    ).sweep()
    assert enqueued == [job_id]
    assert ["a mistake" in message for message in caplog.messages] == [True]


def test_it_removes_the_checkpoints_of_jobs_that_have_ended(settings: Settings, ledger: Ledger) -> None:
    waiting, cancelled, failed = ledger.add(), ledger.add(), ledger.add()
    ledger.cancel(cancelled)
    ledger.fail(failed)
    for job_id in (waiting, cancelled, failed, "of-a-ledger-that-is-gone"):
        checkpoints_of(settings.workspace, job_id).mkdir(parents=True)
    sweep_of(settings, free=False).sweep()
    assert jobs_with_checkpoints(settings.workspace) == {waiting}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), DatabaseFull("no space left")])
def test_a_full_disk_leaves_no_traceback(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail(self: Sweep) -> None:
        raise error

    for part in ("_repair_jobs", "_remove_abandoned"):
        monkeypatch.setattr(Sweep, part, fail)
    sweep_of(settings).sweep()
    assert len(caplog.records) == 2
    assert all("no space left" in record.getMessage().lower() and not record.exc_info for record in caplog.records)
