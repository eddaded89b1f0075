"""The most frequent statements use an index: their plans, for the very statements that `Jobs` sends."""

import re
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select, text, update
from sqlalchemy.orm import Session

from benchmarks import rows
from benchmarks.harness.specs import a_spec
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import attempts, changes, reading, scheduling, webhooks
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.reading import JobFilters, Sort
from replaceme_core.ledger.records import Claim, IdempotencyKey
from replaceme_core.ledger.states import DeliveryState, EventType, JobStatus, Payload
from replaceme_core.ledger.sweep import (
    collect_wake_ups,
    delete_expired_keys,
    delete_finished,
    fail_overdue,
    refresh_statistics,
    requeue_expired,
)
from replaceme_core.ledger.tables import (
    Base,
    DeliveryRow,
    IdempotencyKeyRow,
    JobEventRow,
    JobLogRow,
    JobRow,
    MetricRow,
    TryRow,
    WebhookRow,
)
from replaceme_core.ledger.watching import events_after, gauges, has_unnumbered
from replaceme_core.ledger.webhooks import message_id
from replaceme_core.runner.messages import Stage
from tests.fixtures.jobs.ledger import claim_job

JOBS = 4000
PAST, FUTURE = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
# of three owners that have few of the jobs
DONE, QUEUED, RUNNING = (rows.job_id(number) for number in (7, 21, 3995))
ONE, TWO = "owner-3", "owner-10"
TABLES = Base.metadata.tables.keys()  # a scan of anything else reads the result of another part of the statement
SMALL = {"workers", "event_totals", "stage_totals"}
"""Tables with a row for each worker, type of event or stage, and none for each job."""


def fill(database: Database) -> None:
    """A ledger in use: most jobs are finished, some wait, few run; each has a webhook, whose messages are delivered."""
    rows.fill(database, JOBS)
    ids = [rows.job_id(number) for number in range(JOBS)]
    owners = [f"owner-{number % 50}" for number in range(JOBS)]
    with database.session() as session:
        session.execute(update(JobRow).where(JobRow.status == JobStatus.QUEUED).values(deadline_at=FUTURE))
        number = select(JobRow.number).where(JobRow.id == JobEventRow.job_id).scalar_subquery()
        session.execute(update(JobEventRow).values(position=number))
        keys = [
            {"owner": owner, "key": f"k-{job_id}", "job_id": job_id, "expires_at": FUTURE if number % 50 else PAST}
            for number, (job_id, owner) in enumerate(zip(ids, owners, strict=True))
        ]
        session.execute(insert(IdempotencyKeyRow).values(fingerprint="f"), keys)
        metric = {"stage": Stage.SOLVE, "attempt": 0, "name": "residual", "value": 0.5, "unit": "1"}
        session.execute(insert(MetricRow).values(at=now(), **metric), [{"job_id": job_id} for job_id in ids])
        line = {"number": 1, "attempt": 1, "text": "a line"}
        session.execute(insert(JobLogRow).values(at=now(), **line), [{"job_id": job_id} for job_id in ids])
        webhook = {"url": "https://a.example", "events": ["created"], "labels": {}, "payload": Payload.THIN}
        of_jobs = [{"owner": owner, "job_id": job_id} for job_id, owner in zip(ids, owners, strict=True)]
        session.execute(
            insert(WebhookRow).values(secret="s", created_at=now(), **webhook),
            [{"id": one["job_id"], **one} for one in of_jobs],
        )
        done = {"state": DeliveryState.DELIVERED, "finished_at": now()}
        pending = {"state": DeliveryState.PENDING, "next_try_at": now(plus_seconds=-1)}
        message = {"seq": 1, "type": EventType.CREATED, "body": "{}", "tries": 0, "created_at": now()}
        for some, values in ((of_jobs[:-100], done), (of_jobs[-100:], pending)):
            session.execute(
                insert(DeliveryRow).values(**message, **values), [{"webhook_id": one["job_id"], **one} for one in some]
            )
        session.execute(
            insert(TryRow).values(number=1, at=now(), status=200, seconds=0.1),
            [{"delivery": number} for number in session.scalars(select(DeliveryRow.number))],
        )
    with database.session() as session:
        session.execute(text("ANALYZE"))


def listed(**filters: Any) -> Callable[[Session], object]:
    return lambda session: reading.page(session, limit=20, owner=ONE, filters=JobFilters(**filters))


CLAIM = Claim(job_id=RUNNING, token="0" * 32, attempt=1)
KEY = IdempotencyKey(key="k", fingerprint="f", keep_seconds=60)
CALLS: dict[str, Callable[[Session], object]] = {
    "page of an owner": listed(),
    "page of an owner and status": listed(statuses=[JobStatus.QUEUED]),
    "page of a label": listed(labels={"run": "7"}),
    "page of several statuses": listed(statuses=[JobStatus.QUEUED, JobStatus.RUNNING]),
    "page of a model": listed(model="org/model"),
    "page of a time": listed(created_before=PAST),
    "page of ids": listed(ids=[DONE]),
    "page of a beginning": listed(id_prefix=DONE[:8]),
    "page by end": lambda session: reading.page(session, limit=20, owner=ONE, sort=Sort.LAST_FINISHED),
    "models": lambda session: reading.models(session, owner=ONE, limit=20),
    "totals": lambda session: reading.totals(session, owner=ONE),
    "snapshots": lambda session: reading.get_snapshots(session, [(DONE, ONE)]),
    "timelines": lambda session: reading.timelines(session, [reading.get(session, DONE, owner=ONE)]),
    "log": lambda session: reading.log(session, DONE, after=3, owner=ONE),
    "events": lambda session: reading.events(session, DONE, after=3, owner=ONE),
    "metrics": lambda session: reading.metrics(session, DONE, owner=ONE),
    "get": lambda session: reading.get(session, DONE, owner=ONE),
    "unnumbered events": has_unnumbered,
    "events of an owner": lambda session: events_after(session, 10 * JOBS, limit=100, owner=ONE),
    "figures for monitoring": lambda session: list(gauges(session)),
    "add": lambda session: changes.add(session, spec=a_spec(labels={"run": "7"}), owner=ONE, idempotency_key=KEY),
    "find by keys": lambda session: changes.find_by_keys(session, [KEY], owner=ONE),
    "add to the log": lambda session: attempts.add_log(session, CLAIM, ["a line"]),
    "renew": lambda session: attempts.renew(session, CLAIM, lease_seconds=60),
    "claim": lambda session: claim_job(session, QUEUED),
    "claim the next": lambda session: attempts.claim_next(session, worker="w", lease_seconds=60),
    "claim the next for a worker kind": lambda session: attempts.claim_next(
        session, worker="w", lease_seconds=60, worker_kinds=[WorkerKind.GPU]
    ),
    "queue": scheduling.read_queue,
    "queue and a job": lambda session: scheduling.read_queue(session).including(session, [QUEUED]),
    "wake-ups": lambda session: collect_wake_ups(session, older_than_seconds=60, limit=16),
    "wake-ups for a worker kind": lambda session: collect_wake_ups(
        session, older_than_seconds=60, limit=100, worker_kinds=[WorkerKind.GPU]
    ),
    "fail overdue": lambda session: fail_overdue(session, limit=100),
    "expired keys": lambda session: delete_expired_keys(session, limit=100),
    "requeue expired": lambda session: requeue_expired(session, max_attempts=3, limit=100),
    "delete finished": lambda session: delete_finished(session, older_than_seconds=1e9, limit=10),
    "due messages": webhooks.has_due,
    "claim a message": lambda session: webhooks.claim(session, claim_seconds=60),
    "log of messages": lambda session: webhooks.deliveries(session, DONE, owner="owner-7", limit=20),
    "one message": lambda session: webhooks.delivery(session, DONE, message_id(DONE, 1), owner="owner-7"),
    "webhooks of a job": lambda session: webhooks.page(session, owner="owner-7", job_id=DONE, limit=20),
    "delete a webhook": lambda session: webhooks.remove(session, DONE, owner="owner-7"),
}


def test_an_event_reads_the_webhooks_of_its_job_only(sqlite_database: Database) -> None:
    """And those without a job; not those of all jobs of the owner."""
    fill(sqlite_database)
    plans = rows.plans(sqlite_database, lambda session: changes.request_cancel(session, QUEUED, owner=TWO))
    (plan,) = [plan for plan in plans if "ix_webhooks_owner_job" in plan]
    assert plan.count("ix_webhooks_owner_job (owner=? AND job_id=?)") == 2, plan


def test_a_claim_does_not_read_the_whole_queue(database: Database) -> None:
    """A priority without jobs is looked up in the index that begins with the priority."""
    rows.fill(database, 1000)
    for plan in rows.plans(database, lambda session: attempts.claim_next(session, worker="w", lease_seconds=60)):
        assert "ix_jobs_queued" not in plan, plan


def test_a_claim_reads_no_jobs_of_other_worker_kinds(database: Database) -> None:
    """Jobs for any worker are looked up in the index that begins with the kind, also where only a GPU is waited for."""
    rows.fill(database, 2000)
    with database.session() as session:
        session.execute(update(JobRow).where(JobRow.status == JobStatus.QUEUED).values(worker_kind=WorkerKind.GPU))
        session.execute(text("ANALYZE"))
    on_cpu = rows.plans(
        database,
        lambda session: attempts.claim_next(session, worker="w", lease_seconds=60, worker_kinds=[WorkerKind.CPU]),
    )
    assert any("ix_jobs_route_turn" in plan for plan in on_cpu)
    for plan in on_cpu:
        assert "ix_jobs_turn" not in plan, plan


def test_the_beginning_of_an_id_is_looked_up_in_the_index(database: Database) -> None:
    """On PostgreSQL, also where the order of texts is not that of their bytes. SQLite prefers that of the owner."""
    rows.fill(database, 2000)
    filters = JobFilters(id_prefix=rows.job_id(1001)[:35])
    (plan,) = rows.plans(database, lambda session: reading.page(session, limit=2, owner="owner-0", filters=filters))
    assert "uq_jobs_id" in plan or "SEARCH jobs" in plan, plan
    with database.session(read_only=True) as session:
        found = reading.page(session, limit=20, owner="owner-0", filters=filters).items
    assert {one.id for one in found} == {rows.job_id(number) for number in (1001, *range(0x3E0, 0x3F0, 2))}


def test_sqlite_learns_how_many_jobs_an_owner_has(sqlite_url: str) -> None:
    """Else it reads all jobs of the only owner for the next events."""

    def plan() -> str:
        with closing(Database(sqlite_url)) as database:
            return "".join(rows.plans(database, lambda session: events_after(session, 10, limit=100, owner=ONE)))

    with closing(Database(sqlite_url)) as database:
        rows.fill(database, 500)
        with database.session() as session:
            session.execute(update(JobRow).values(owner=ONE))
            session.execute(text("DELETE FROM sqlite_stat1"))
    assert "ix_job_events_position" not in plan()
    with closing(Database(sqlite_url)) as database:
        refresh_statistics(database)
    assert "ix_job_events_position" in plan()


def test_no_statement_reads_a_whole_table(database: Database) -> None:
    fill(database)
    for name, call in CALLS.items():
        for plan in rows.plans(database, call):
            assert set(re.findall(r"Seq Scan on (\w+)", plan)) <= SMALL, (name, plan)
            scans = [line for line in plan.splitlines() if line.startswith("SCAN")]
            assert all("INDEX" in line or line.split()[1] not in TABLES - SMALL for line in scans), (name, plan)
    # a sweep without wake-ups: ordered by arrival, it would read every job in the table
    _running, *waiting = rows.plans(
        database, lambda session: collect_wake_ups(session, older_than_seconds=60, limit=16)
    )
    assert waiting
    for plan in waiting:
        assert "ix_jobs_queued" in plan, plan
        assert "Index Cond" in plan or "last_rung_at" in plan, plan
