"""The most frequent statements use an index: their plans, for the very statements that `Jobs` sends."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, event, insert, select, text
from sqlalchemy.orm import Session

from benchmarks import rows
from benchmarks.harness.specs import a_spec
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import attempts, changes, reading, scheduling, webhooks
from replaceme_core.ledger.database import Database, LedgerSession, now
from replaceme_core.ledger.reading import JobFilters, Sort
from replaceme_core.ledger.records import Claim, IdempotencyKey
from replaceme_core.ledger.states import DeliveryState, EventType, JobStatus, Payload
from replaceme_core.ledger.sweep import (
    collect_wake_ups,
    delete_expired_keys,
    delete_finished,
    fail_overdue,
    requeue_expired,
)
from replaceme_core.ledger.tables import (
    Base,
    DeliveryRow,
    IdempotencyKeyRow,
    JobEventRow,
    JobLabelRow,
    JobLogRow,
    JobRow,
    MetricRow,
    TryRow,
    WebhookRow,
)
from replaceme_core.ledger.watching import events_after, has_unnumbered, read_figures
from replaceme_core.ledger.webhooks import message_id
from replaceme_core.runner.messages import Stage
from tests.fixtures.jobs.ledger import claim_job

JOBS = 4000
AGES = (datetime(2100, 1, 1, tzinfo=UTC), datetime(2000, 1, 1, tzinfo=UTC))
SOME_ID = str(UUID(int=7))
TABLES = Base.metadata.tables.keys()  # a scan of anything else reads the result of another part of the statement
SMALL = {"workers", "event_totals", "stage_totals"}
"""Tables with a row for each worker, type of event or stage, and none for each job."""
EXPLAINED = ("SELECT", "WITH", "UPDATE", "DELETE")
RESULT = {"repo_id": "org/small", "revision": "b" * 40, "removed_blocks": [1], "kept_blocks": [0]}


def fill(database: Database) -> None:
    """A ledger in use: most jobs are finished, many wait, few run."""
    finished = {"finished_at": now(), "result": RESULT}
    running = {"lease_token": "0" * 32, "lease_expires_at": now(plus_seconds=60)}
    kinds: list[tuple[JobStatus, range, dict[str, Any]]] = [
        (JobStatus.SUCCEEDED, range(0, 2990), finished),
        (JobStatus.QUEUED, range(2990, 3990), {"enqueued_at": now(), "deadline_at": now(plus_seconds=600)}),
        (JobStatus.RUNNING, range(3990, JOBS), running),
    ]
    spec = a_spec().model_dump(mode="json")
    with database.session() as session:
        for status, numbers, values in kinds:
            common = {"status": status, "spec": spec, "attempt": 0, "event_count": 1, "overall": 0.0}
            session.execute(
                insert(JobRow).values(**common, stage_fraction=0.0, created_at=now(), **values),
                [{"id": str(UUID(int=number)), "owner": f"owner-{number % 50}"} for number in numbers],
            )
        session.execute(
            insert(JobLabelRow),
            [{"job_id": str(UUID(int=n)), "name": "run", "value": str(n % 400)} for n in range(JOBS)],
        )
        session.execute(
            insert(IdempotencyKeyRow).values(fingerprint="f"),
            [
                {
                    "owner": f"owner-{n % 50}",
                    "key": f"k-{n}",
                    "job_id": str(UUID(int=n)),
                    "expires_at": AGES[n % 50 == 0],
                }
                for n in range(JOBS)
            ],
        )
        events = {"type": EventType.CREATED, "attempt": 0, "data": {}}
        metrics = {"stage": Stage.SOLVE, "attempt": 0, "name": "residual", "value": 0.5, "unit": "1"}
        each = [str(UUID(int=number)) for number in range(JOBS)]
        numbered = [{"job_id": one, "position": position} for position, one in enumerate(each, 1)]
        session.execute(insert(JobEventRow).values(seq=1, at=now(), **events), numbered)
        session.execute(insert(MetricRow).values(at=now(), **metrics), [{"job_id": one} for one in each])
        lines = {"number": 1, "attempt": 1, "text": "a line"}
        session.execute(insert(JobLogRow).values(at=now(), **lines), [{"job_id": one} for one in each])
        fill_webhooks(session)
    with database.session() as session:
        session.execute(text("ANALYZE"))


def fill_webhooks(session: LedgerSession) -> None:
    """A webhook for each job, all of whose messages but a few are delivered."""
    webhook = {"url": "https://a.example", "events": ["created"], "labels": {}, "payload": Payload.THIN, "secret": "s"}
    session.execute(
        insert(WebhookRow).values(created_at=now(), **webhook),
        [{"id": str(UUID(int=n)), "owner": f"owner-{n % 50}", "job_id": str(UUID(int=n))} for n in range(JOBS)],
    )
    done = {"state": DeliveryState.DELIVERED, "finished_at": now()}
    pending = {"state": DeliveryState.PENDING, "next_try_at": now(plus_seconds=-1)}
    message = {"seq": 1, "type": EventType.CREATED, "body": "{}", "tries": 0, "created_at": now()}
    for numbers, values in ((range(0, JOBS - 100), done), (range(JOBS - 100, JOBS), pending)):
        session.execute(
            insert(DeliveryRow).values(**message, **values),
            [{"webhook_id": str(UUID(int=n)), "owner": f"owner-{n % 50}", "job_id": str(UUID(int=n))} for n in numbers],
        )
    session.execute(
        insert(TryRow).values(number=1, at=now(), status=200, seconds=0.1),
        [{"delivery": number} for number in session.scalars(select(DeliveryRow.number))],
    )


CALLS: dict[str, Callable[[Session], object]] = {
    "page of an owner": lambda session: reading.page(session, limit=20, owner="owner-3"),
    "page of an owner and status": lambda session: reading.page(
        session, limit=20, owner="owner-3", filters=JobFilters(statuses=[JobStatus.QUEUED])
    ),
    "page of a label": lambda session: reading.page(
        session, limit=20, owner="owner-3", filters=JobFilters(labels={"run": "7"})
    ),
    "page of several statuses": lambda session: reading.page(
        session, limit=20, owner="owner-3", filters=JobFilters(statuses=[JobStatus.QUEUED, JobStatus.RUNNING])
    ),
    "page of a model": lambda session: reading.page(
        session, limit=20, owner="owner-3", filters=JobFilters(model="org/model")
    ),
    "page of a time": lambda session: reading.page(
        session, limit=20, owner="owner-3", filters=JobFilters(created_before=AGES[1])
    ),
    "page of ids": lambda session: reading.page(session, limit=20, owner="owner-7", filters=JobFilters(ids=[SOME_ID])),
    "page by end": lambda session: reading.page(session, limit=20, owner="owner-3", sort=Sort.LAST_FINISHED),
    "snapshots": lambda session: reading.get_snapshots(session, [(SOME_ID, "owner-7")]),
    "timelines": lambda session: reading.timelines(session, [reading.get(session, SOME_ID, owner="owner-7")]),
    "log": lambda session: reading.log(session, SOME_ID, after=3, owner="owner-7"),
    "unnumbered events": lambda session: has_unnumbered(session),
    "events of an owner": lambda session: events_after(session, JOBS, limit=100, owner="owner-3"),
    "delete finished": lambda session: delete_finished(session, older_than_seconds=1e9, limit=10),
    "get": lambda session: reading.get(session, SOME_ID, owner="owner-7"),
    "add to the log": lambda session: attempts.add_log(
        session, Claim(job_id=str(UUID(int=3995)), token="0" * 32, attempt=1), ["a line"]
    ),
    "renew": lambda session: attempts.renew(
        session, Claim(job_id=str(UUID(int=3995)), token="0" * 32, attempt=1), lease_seconds=60
    ),
    "claim": lambda session: claim_job(session, str(UUID(int=3000)), worker="w", lease_seconds=60),
    "claim the next": lambda session: attempts.claim_next(session, worker="w", lease_seconds=60),
    "claim the next for a worker kind": lambda session: attempts.claim_next(
        session, worker="w", lease_seconds=60, worker_kinds=[WorkerKind.GPU]
    ),
    "wake-ups for a worker kind": lambda session: collect_wake_ups(
        session, older_than_seconds=60, limit=100, worker_kinds=[WorkerKind.GPU]
    ),
    "queue position": lambda session: scheduling.queue_position(session, str(UUID(int=3000)), owner="owner-0"),
    "fail overdue": lambda session: fail_overdue(session, limit=100),
    "expired keys": lambda session: delete_expired_keys(session, limit=100),
    "find by key": lambda session: changes.find_by_key(
        session, IdempotencyKey(key="k-7", fingerprint="f", keep_seconds=1), owner="owner-7"
    ),
    "add": lambda session: changes.add(
        session,
        spec=a_spec(labels={"run": "7"}),
        owner="owner-3",
        idempotency_key=IdempotencyKey(key="k", fingerprint="f", keep_seconds=60),
    ),
    "events": lambda session: reading.events(session, SOME_ID, after=3, owner="owner-7"),
    "metrics": lambda session: reading.metrics(session, SOME_ID, owner="owner-7"),
    "wake-ups": lambda session: collect_wake_ups(session, older_than_seconds=60, limit=100),
    "requeue expired": lambda session: requeue_expired(session, max_attempts=3, limit=100),
    "due messages": lambda session: webhooks.has_due(session),
    "claim a message": lambda session: webhooks.claim(session, claim_seconds=60),
    "log of messages": lambda session: webhooks.deliveries(session, SOME_ID, owner="owner-7", limit=20),
    "one message": lambda session: webhooks.delivery(session, SOME_ID, message_id(SOME_ID, 1), owner="owner-7"),
    "webhooks of a job": lambda session: webhooks.page(session, owner="owner-7", job_id=SOME_ID, limit=20),
    "figures for monitoring": lambda session: read_figures(session),
    "delete a webhook": lambda session: webhooks.remove(session, SOME_ID, owner="owner-7"),
}


def sent_by(session: LedgerSession, call: Callable[[Session], object]) -> list[tuple[str, Any]]:
    """The statements that `call` sends, with their parameters."""
    sent: list[tuple[str, Any]] = []

    def record(_: Connection, __: object, statement: str, parameters: Any, *___: object) -> None:
        sent.append((statement, parameters))

    event.listen(session.connection(), "before_cursor_execute", record)
    call(session)
    event.remove(session.connection(), "before_cursor_execute", record)
    return [(statement, parameters) for statement, parameters in sent if statement.startswith(EXPLAINED)]


def plan_of(database: Database, call: Callable[[Session], object]) -> list[str]:
    """The plans of all statements that `call` sends."""
    with database.session() as session:
        explain = "EXPLAIN QUERY PLAN " if session.connection().dialect.name == "sqlite" else "EXPLAIN "
        sent = sent_by(session, call)
        assert sent
        found = [session.connection().exec_driver_sql(explain + sql, parameters) for sql, parameters in sent]
        return ["\n".join(str(row[-1]) for row in rows) for rows in found]


def test_an_event_reads_the_webhooks_of_its_job_only(sqlite_database: Database) -> None:
    """And those without a job; not those of all jobs of the owner."""
    fill(sqlite_database)
    plans = plan_of(
        sqlite_database, lambda session: changes.request_cancel(session, str(UUID(int=3000)), owner="owner-0")
    )
    (plan,) = [plan for plan in plans if "ix_webhooks_owner_job" in plan]
    assert plan.count("ix_webhooks_owner_job (owner=? AND job_id=?)") == 2, plan


def test_a_claim_does_not_read_the_whole_queue(database: Database) -> None:
    """A priority without jobs is looked up in the index that begins with the priority."""
    rows.fill(database, 1000)
    for plan in rows.plans(database, lambda session: attempts.claim_next(session, worker="w", lease_seconds=60)):
        assert "ix_jobs_queued" not in plan, plan


def test_no_statement_reads_a_whole_table(database: Database) -> None:
    fill(database)
    for name, call in CALLS.items():
        for plan in plan_of(database, call):
            assert set(re.findall(r"Seq Scan on (\w+)", plan)) <= SMALL, (name, plan)
            scans = [line for line in plan.splitlines() if line.startswith("SCAN")]
            assert all("INDEX" in line or line.split()[1] not in TABLES - SMALL for line in scans), (name, plan)
    # a sweep without wake-ups: ordered by arrival, it would read every job in the table
    _running, *waiting = plan_of(database, lambda session: collect_wake_ups(session, older_than_seconds=60, limit=16))
    assert waiting
    for plan in waiting:
        assert "ix_jobs_queued" in plan, plan
        assert "Index Cond" in plan or "last_rung_at" in plan, plan
