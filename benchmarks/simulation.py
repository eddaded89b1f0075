"""A day of scheduling in minutes: the ledger's own code on a real PostgreSQL, whose clock is simulated.

    python -m benchmarks.simulation [--gpus 100] [--jobs 10000] [--days 1] [--seed 0] [--lost 0.05] [--json FILE]

Jobs are submitted, workers claim, renew and end them, some are lost in mid-job and replaced, and sweeps run. Each event
makes the transactions of the service, one after the other; the work, the broker and the clock are simulated. Of three
tenants, two submit by day and night, and one floods: half of all jobs within a twelfth of the time. Its key limits how
many of its jobs run and how many it may have; its client repeats what was refused.

Starved is a job that had waited for a minute when a claim passed it over against the rules: for a lower priority, for a
tenant of the same priority with more running jobs, or for a later job of its own tenant. The utilisation that counts is
the time of attempts that gave a result, as a part of the time of all GPUs, while a job was queued that could start.

Then threads make the same calls at once, by the real clock, on the ledger that the day has left and with a long queue.
The processor time of PostgreSQL and Valkey says where they saturate. The exit status is 1 if the utilisation with a
queue is below 85 %, or if a job is starved, lost, doubled, or claimed over the limit of its key.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import time
from bisect import insort
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from heapq import heappop, heappush
from logging import WARNING
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import psutil
import structlog
from sqlalchemy import Connection, Engine, event, make_url, select, text
from sqlalchemy.orm import Session
from starlette.types import Scope as AsgiScope

from api.http.callers import CALLER, Caller
from api.queue import Queue
from api.routes.planning import Planning, Slots
from api.routes.submission import Submitter
from benchmarks.harness.servers import start_postgres, start_valkey
from benchmarks.harness.specs import a_spec
from benchmarks.percentile import percentile
from replaceme_core.errors import LeaseLost, StaleTransition, TooManyJobs
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import attempts, sweep
from replaceme_core.ledger.database import Database, make_engine
from replaceme_core.ledger.keys import Keys, NewKey, Scope
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.states import TERMINAL, EventType, JobStatus
from replaceme_core.ledger.tables import JobEventRow, JobRow
from replaceme_core.ledger.watching import number_all
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import Stage
from replaceme_core.secrets_box import SecretsBox
from replaceme_core.settings import Settings
from replaceme_core.shapes import KeyLimits
from worker.lease import POLL_SECONDS, RENEWALS_PER_LEASE
from worker.sweep import JITTER, KEYS_LIMIT, LIMIT, NUMBERINGS_LIMIT, WAKE_UP_AFTER_SWEEPS, Sweep

LEAST_UTILISATION = 0.85
STARVED_SECONDS = 60.0

FLOOD, STEADY = "flood", ("lab", "team")
FLOOD_PART = 0.5  # of all jobs
FLOOD_BEGINS, FLOOD_LASTS = 1 / 6, 1 / 12  # of the time: at 4 o'clock, before the day begins
FLOOD_RUNNING, FLOOD_ACTIVE = 0.85, 0.75  # limits of its key: a part of the GPUs, and of its jobs
REFUSED_SECONDS = 600.0  # until its client tries again
SWING = 0.8  # of the rate of the others around its mean: least at 3 o'clock, most at 15
PRIORITIES = {2: 0.1, 5: 0.8, 8: 0.1}
LOAD = 0.75  # all work, as a part of what the GPUs could do in the time
SIGMA = 1.0  # of the logarithm of the jobs' lengths
CUT_OFF = 0.5  # of lost workers: they go on without the database, and at the end try to write a result
RENEWED_SECONDS, BATCH_SECONDS = 50, 5  # see `Simulation._plan_renewals`
TICK_SECONDS = 0.001  # between two transactions, so that no two have the same time
EPOCH = datetime(2026, 1, 5, tzinfo=UTC)
GPU = (WorkerKind.GPU,)

SET_CLOCK = "SELECT set_config('simulated.now', %s, true)"
INSTALL_CLOCK = """
CREATE SCHEMA simulated;
CREATE FUNCTION simulated.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT current_setting('simulated.now')::timestamptz
        + (pg_catalog.statement_timestamp() - pg_catalog.transaction_timestamp()) / 100
$$
"""
"""The second term: of two statements in a transaction the second one is later, and both are before the next tick."""


@dataclass
class Clock:
    """The time in sessions of the URL that `install` returns. The ledger asks PostgreSQL for it, never its process."""

    seconds: float = 0.0

    @staticmethod
    def install(url: str) -> str:
        """Add a function to a database that replaces PostgreSQL's own where the search path names its schema first."""
        with make_engine(url, pooled=False).begin() as connection:
            connection.exec_driver_sql(INSTALL_CLOCK)
        options = {"options": "-csearch_path=simulated,public,pg_catalog"}
        return make_url(url).update_query_dict(options).render_as_string(hide_password=False)

    def begin(self, connection: Connection) -> None:
        """Set the time of a transaction."""
        self.seconds += TICK_SECONDS
        connection.exec_driver_sql(SET_CLOCK, ((EPOCH + timedelta(seconds=self.seconds)).isoformat(),))


class Costs:
    """By call, which is what the service does in one go. `seconds` are those in which PostgreSQL was waited for."""

    def __init__(self) -> None:
        self.calls, self.statements, self.seconds = Counter[str](), Counter[str](), defaultdict[str, float](float)
        self._call, self._sent_at = "", 0.0

    @contextmanager
    def of(self, call: str, *, number: int = 1) -> Iterator[None]:
        self._call = call
        self.calls[call] += number
        try:
            yield
        finally:
            self._call = ""

    def sent(self, *_: object) -> None:
        self._sent_at = time.perf_counter()

    def done(self, _: Connection, __: object, statement: str, *___: object) -> None:
        if statement != SET_CLOCK and self._call:
            self.statements[self._call] += 1
            self.seconds[self._call] += time.perf_counter() - self._sent_at


@contextmanager
def listening(costs: Costs, **others: Callable[..., None]) -> Iterator[None]:
    """While it is open, the statements of all engines are counted, and `others` get the events of their names."""
    listeners = {"before_cursor_execute": costs.sent, "after_cursor_execute": costs.done, **others}
    for name, listener in listeners.items():
        event.listen(Engine, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners.items():
            event.remove(Engine, name, listener)


@dataclass(eq=False, kw_only=True)
class SimulatedJob:
    """`attempt` is the one that holds the job; `due_at` the end of a pause. No two have the same `submitted_at`."""

    tenant: str
    priority: int
    length: float
    submitted_at: float
    due_at: float = 0.0
    attempt: "Attempt | None" = None


@dataclass(eq=False, kw_only=True)
class Attempt:
    """`queue_before` is `queue_seconds` of the simulation when it began."""

    claim: Claim
    job: SimulatedJob
    worker: str
    began_at: float
    renewed_at: float
    queue_before: float
    is_lost: bool = False


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """`lost` is the part of attempts whose worker is lost; another one starts after `replaced_seconds` on average."""

    gpus: int
    jobs: int
    days: float = 1.0
    seed: int = 0
    lost: float = 0.05
    replaced_seconds: float = 300.0
    sweeps: bool = True

    @property
    def seconds(self) -> float:
        return self.days * 86_400

    def limits(self, tenant: str) -> KeyLimits:
        running, active = FLOOD_RUNNING * self.gpus, FLOOD_ACTIVE * FLOOD_PART * self.jobs
        return KeyLimits(running_jobs=max(int(running), 1), jobs=math.ceil(active)) if tenant == FLOOD else KeyLimits()

    def draw_jobs(self, draw: random.Random) -> Iterator[SimulatedJob]:
        mean = LOAD * self.gpus * self.seconds / self.jobs
        day = min(self.seconds, 86_400)  # a shorter time is one short day
        for number in range(self.jobs):
            tenant = FLOOD if number < FLOOD_PART * self.jobs else STEADY[number % len(STEADY)]
            at = self.seconds * (FLOOD_BEGINS + FLOOD_LASTS * draw.random())
            while tenant != FLOOD:
                at = self.seconds * draw.random()
                if draw.random() * (1 + SWING) < 1 - SWING * math.cos(2 * math.pi * (at / day - 1 / 8)):
                    break
            [priority] = draw.choices(list(PRIORITIES), weights=list(PRIORITIES.values()))
            length = draw.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA)
            yield SimulatedJob(tenant=tenant, priority=priority, length=length, submitted_at=at)


class Rules:
    """The queue, kept beside the ledger to judge each claim by the rules that the documentation gives."""

    def __init__(self, scenario: Scenario) -> None:
        self.running, self.over_limit = Counter[str](), 0
        self.starved = set[float]()
        self._limits = {tenant: scenario.limits(tenant).running_jobs or math.inf for tenant in (FLOOD, *STEADY)}
        self._waiting: defaultdict[tuple[str, int], list[SimulatedJob]] = defaultdict(list)

    def add(self, job: SimulatedJob) -> None:
        insort(self._waiting[job.tenant, job.priority], job, key=lambda one: one.submitted_at)

    def first(self, at: float) -> list[SimulatedJob]:
        """The first job that could start, of each tenant and priority."""
        below = [jobs for (tenant, _), jobs in self._waiting.items() if self.running[tenant] < self._limits[tenant]]
        found = (next((job for job in jobs if job.due_at <= at), None) for jobs in below)
        return [job for job in found if job is not None]

    def claimed(self, job: SimulatedJob, at: float) -> None:
        """Note which jobs this claim has passed over."""
        running = self.running
        for other in self.first(at):
            ranks = (other.priority, -running[other.tenant]) > (job.priority, -running[job.tenant])
            is_own = other.tenant == job.tenant and other.priority >= job.priority
            is_before = is_own and other.submitted_at < job.submitted_at
            if (ranks or is_before) and at - other.submitted_at > STARVED_SECONDS:
                self.starved.add(other.submitted_at)
        queue = self._waiting[job.tenant, job.priority]
        queue[:] = (one for one in queue if one is not job)
        running[job.tenant] += 1
        self.over_limit += running[job.tenant] > self._limits[job.tenant]


class Messages(Queue):
    """The broker: it keeps the order of messages."""

    def __init__(self) -> None:
        self.waiting: deque[str] = deque()

    def enqueue(self, job_id: str, *, worker_kind: WorkerKind | None = None) -> None:
        self.waiting.append(job_id)


class Submissions(Submitter):
    """The transaction of a submission. What comes before it, the Hub and the plan of the job, is no scheduling."""

    def store(self, spec: CompressionSpec, *, scope: AsgiScope) -> str:
        """The id of a new job. Raises `TooManyJobs`."""
        [submitted] = self._store([spec], webhook=None, ids=[str(uuid4())], keys=[None], scope=scope)
        return submitted.job.id


def submissions_of(database: Database, queue: Queue, settings: Settings) -> Submissions:
    unused = {"planning": cast(Planning, None), "write_slots": Slots(1, of_one=1, doing="writing")}
    box = partial(SecretsBox, [])
    return Submissions(settings=settings, database=database, queue=queue, open_secrets_box=box, **unused)


def scope_of(database: Database, tenant: str, limits: KeyLimits) -> AsgiScope:
    """The scope of requests with a new key of this tenant."""
    with database.session() as session:
        key = Keys(session).create(NewKey(owner=tenant, name=tenant, scopes=frozenset(Scope), limits=limits))
    scope: dict[str, object] = {}
    scope[CALLER] = Caller.of(key)
    return scope


def claim_one(session: Session, *, worker: str, lease_seconds: float) -> Claim | None:
    claim = attempts.claim_next(session, worker=worker, lease_seconds=lease_seconds, worker_kinds=GPU)
    if claim is not None:
        attempts.job_of(session, claim)
    return claim


def end_one(session: Session, claim: Claim) -> None:
    """Raises `LeaseLost` and `StaleTransition`."""
    sides = {"before": {"perplexity": 20.5}, "after": {"perplexity": 21.5}}
    report = {"removed_blocks": [1], "kept_blocks": [0], **sides}
    attempts.succeed(session, claim, repo_id="org/small", revision="b" * 40, report=report)
    attempts.job_of(session, claim)
    attempts.history(session, claim)


class Simulation:
    """One run on `url`, a migrated PostgreSQL database without jobs, with the default settings of the service.

    `run` raises `LeaseLost` if a sweep requeues the job of a live worker.
    """

    def __init__(self, url: str, scenario: Scenario) -> None:
        self.scenario, self.clock, self.costs, self.rules = scenario, Clock(), Costs(), Rules(scenario)
        self.url = self.clock.install(url)
        self.settings = Settings(_env_file=None, database_url=self.url)
        self.doubled, self.counts = list[str](), Counter[str]()
        self.ended_at = self.queue_seconds = self.useful = self.useful_with_queue = self.worked = 0.0
        self._draw = random.Random(scenario.seed)
        self._messages = Messages()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._open, self._until = scenario.jobs, scenario.seconds + 2 * 86_400  # what is open then is lost
        self._jobs: dict[str, SimulatedJob] = {}
        self._idle, self._lost = deque[str](), list[Attempt]()
        self._renewals: defaultdict[float, list[Attempt]] = defaultdict(list)

    def run(self) -> None:
        with closing(Database(self.url)) as self._database, listening(self.costs, begin=self.clock.begin):
            self._submissions = submissions_of(self._database, self._messages, self.settings)
            limits = {tenant: self.scenario.limits(tenant) for tenant in (FLOOD, *STEADY)}
            scopes = {tenant: scope_of(self._database, tenant, each) for tenant, each in limits.items()}
            specs = {each: a_spec(compute={"device": "cuda"}, priority=each) for each in PRIORITIES}
            for job in self.scenario.draw_jobs(self._draw):
                self._at(job.submitted_at, partial(self._submit, job, specs[job.priority], scopes[job.tenant]))
            for _ in range(self.scenario.gpus):
                self._add_worker()
            if self.scenario.sweeps:
                self._at(self.settings.sweep_seconds, self._sweep)
            has_queue = False
            while self._events:
                before = self.clock.seconds
                at, _, action = heappop(self._events)
                self.clock.seconds = max(at, before)
                self.queue_seconds += (self.clock.seconds - before) * has_queue
                action()
                has_queue = bool(self.rules.first(self.clock.seconds))

    def _at(self, seconds: float, action: Callable[[], None]) -> None:
        self.counts["events"] += 1
        heappush(self._events, (seconds, self.counts["events"], action))

    def _submit(self, job: SimulatedJob, spec: CompressionSpec, scope: AsgiScope) -> None:
        try:
            with self.costs.of("submission"):
                job_id = self._submissions.store(spec, scope=scope)
        except TooManyJobs:
            self.counts["refused"] += 1
            if self.clock.seconds < self._until:
                self._at(self.clock.seconds + REFUSED_SECONDS, partial(self._submit, job, spec, scope))
            return
        self._jobs[job_id] = job
        job.submitted_at = self.clock.seconds
        self.rules.add(job)
        self._deliver()

    def _add_worker(self) -> None:
        self.counts["workers"] += 1
        self._idle.append(f"worker-{self.counts['workers']}:1")
        self._deliver()

    def _deliver(self) -> None:
        while self._idle and self._messages.waiting:
            self._messages.waiting.popleft()
            self._claim(self._idle.popleft())

    def _claim(self, worker: str) -> None:
        with self.costs.of("claim"), self._database.session() as session:
            claim = claim_one(session, worker=worker, lease_seconds=self.settings.lease_seconds)
        if claim is None:
            self._idle.append(worker)
            return
        now, job = self.clock.seconds, self._jobs[claim.job_id]
        self.rules.claimed(job, now)
        times = {"began_at": now, "renewed_at": now, "queue_before": self.queue_seconds}
        job.attempt = attempt = Attempt(claim=claim, job=job, worker=worker, **times)
        is_lost, lasts = self._draw.random() < self.scenario.lost, job.length
        if is_lost:
            lasts *= self._draw.random()
            self._at(now + lasts, partial(self._lose, attempt))
        if not is_lost or self._draw.random() < CUT_OFF:
            self._at(now + job.length, partial(self._end, attempt))
        self._plan_renewals(attempt, lasts, is_lost=is_lost)

    def _plan_renewals(self, attempt: Attempt, lasts: float, *, is_lost: bool) -> None:
        """A renewal replaces what the one before has written. So only those are made that a sweep can notice: one in
        `RENEWED_SECONDS`, which is less than the lease, and the last one before a loss, which decides when the lease
        expires. Renewals of a few seconds share a transaction, which costs less here; the statements are the same.
        """
        interval = self.settings.lease_seconds / RENEWALS_PER_LEASE
        number = int(lasts / interval)
        self.counts["renewals"] += number
        last = attempt.began_at + number * interval
        times = [attempt.began_at + RENEWED_SECONDS * one for one in range(1, int(lasts / RENEWED_SECONDS) + 1)]
        made = {at // BATCH_SECONDS * BATCH_SECONDS for at in times if at < last or not is_lost}
        for at in made | ({last} if is_lost and number else set()):
            if at not in self._renewals:
                self._at(at, partial(self._renew, at))
            self._renewals[at].append(attempt)

    def _renew(self, at: float) -> None:
        due = [attempt for attempt in self._renewals.pop(at) if attempt.job.attempt is attempt]
        with self.costs.of("renewal", number=len(due)), self._database.session() as session:
            for attempt in due:
                attempts.renew(session, attempt.claim, lease_seconds=self.settings.lease_seconds)
                attempt.renewed_at = self.clock.seconds

    def _end(self, attempt: Attempt) -> None:
        """Also for a worker that was cut off: its result must be refused once the job is queued again."""
        try:
            with self.costs.of("end"), self._database.session() as session:
                end_one(session, attempt.claim)
            self._close(attempt.job)
        except (LeaseLost, StaleTransition):
            if not attempt.is_lost:
                raise
            self.counts["late results refused"] += 1
        if not attempt.is_lost:
            self.worked += self.clock.seconds - attempt.began_at
            self.useful += self.clock.seconds - attempt.began_at
            self.useful_with_queue += self.queue_seconds - attempt.queue_before
            self._idle.append(attempt.worker)
            self._deliver()

    def _close(self, job: SimulatedJob) -> None:
        self._open -= 1
        self.ended_at = self.clock.seconds
        self.rules.running[job.tenant] -= job.attempt is not None
        job.attempt = None

    def _lose(self, attempt: Attempt) -> None:
        attempt.is_lost = True
        self.counts["lost attempts"] += 1
        self.worked += self.clock.seconds - attempt.began_at
        self._lost.append(attempt)
        pause = self._draw.expovariate(1 / self.scenario.replaced_seconds)
        self._at(self.clock.seconds + pause, self._add_worker)

    def _sweep(self) -> None:
        """As `worker.sweep` does it, in the same order. Of all workers that sweep at this interval, one does it here:
        the others find less to do, or find it earlier; those of idle workers would also send more messages.
        """
        database, seconds, due = self._database, self.settings.sweep_seconds, []
        most, older = self.settings.max_attempts, WAKE_UP_AFTER_SWEEPS * seconds
        with self.costs.of("sweep"):
            with database.session() as session:
                sweep.requeue_expired(session, max_attempts=most, limit=LIMIT, backoff_seconds=seconds)
            with database.session() as session:
                sweep.fail_overdue(session, limit=LIMIT)
            with database.session() as session:
                sweep.delete_expired_keys(session, limit=KEYS_LIMIT)
            number_all(database, most=NUMBERINGS_LIMIT)
            if self._idle:
                with database.session() as session:
                    due = sweep.collect_wake_ups(session, older_than_seconds=older, limit=LIMIT, worker_kinds=GPU)
        self._note_expired()
        for job_id, worker_kind in due:
            self._messages.enqueue(job_id, worker_kind=worker_kind)
        self._deliver()
        if self._open and self.clock.seconds < self._until:
            self._at(self.clock.seconds + seconds * self._draw.uniform(1 - JITTER, 1 + JITTER), self._sweep)

    def _note_expired(self) -> None:
        """Note which jobs of lost workers were queued again, or have failed since all their attempts were lost."""
        held = {one.claim.job_id: one for one in self._lost if one.job.attempt is one}
        self._lost = list(held.values())
        if not held:
            return
        ended = select(JobRow.id, JobRow.status, JobRow.not_before).where(JobRow.status != JobStatus.RUNNING)
        with self._database.session(read_only=True) as session:
            rows = session.execute(ended.where(JobRow.id.in_(held))).all()
        for job_id, status, not_before in rows:
            attempt, job = held[job_id], held[job_id].job
            if self.clock.seconds < attempt.renewed_at + self.settings.lease_seconds:
                self.doubled.append(f"job {job_id} was requeued before its lease had expired")
            if status in TERMINAL:
                self._close(job)
                continue
            job.attempt, job.due_at = None, (not_before - EPOCH).total_seconds()
            self.rules.running[job.tenant] -= 1
            self.rules.add(job)


def doubled_in(history: Iterable[tuple[str, EventType]]) -> list[str]:
    """Jobs that ended twice or had two attempts at once, by the events of each job in order."""
    found, states = [], dict[str, EventType]()
    for job_id, kind in history:
        before = states.get(job_id)
        if before in (EventType.SUCCEEDED, EventType.FAILED) or kind is before is EventType.CLAIMED:
            found.append(f"job {job_id}: {kind} after {before}")
        states[job_id] = kind
    return found


def figures_of(simulation: Simulation) -> dict[str, Any]:
    """By the rows and events of the ledger, wherever they say it.

    `waits`: the number of jobs; p50, p99 and the longest in seconds. `costs`: calls, statements and seconds in which
    PostgreSQL was waited for. `per_job`: calls as all workers would make them, with the renewals that were left out,
    and with what a worker does every second (writes of progress: at most).
    """
    plan, costs, counts = simulation.scenario, simulation.costs, simulation.counts
    columns = (JobRow.owner, JobRow.priority, JobRow.status, JobRow.created_at, JobRow.started_at)
    events = select(JobEventRow.job_id, JobEventRow.type).order_by(JobEventRow.job_id, JobEventRow.seq)
    with closing(Database(simulation.url)) as database, database.session(read_only=True) as session:
        rows = session.execute(select(*columns)).all()
        doubled = simulation.doubled + doubled_in((job_id, kind) for job_id, kind in session.execute(events))
    waits: defaultdict[str, list[float]] = defaultdict(list)
    for row in (row for row in rows if row.started_at is not None):
        for group in (f"{row.owner}, all", f"{row.owner}, {row.priority}", f"all, {row.priority}"):
            waits[group].append((row.started_at - row.created_at).total_seconds())
    every_second = simulation.worked / POLL_SECONDS
    calls = {**costs.calls, "renewal": counts["renewals"], "sweep": costs.calls["sweep"] * plan.gpus}
    calls |= {"cancel check": every_second, "progress": every_second}
    return {
        "scenario": asdict(plan),
        "hours": simulation.ended_at / 3600,
        "hours_with_queue": simulation.queue_seconds / 3600,
        "utilisation": simulation.useful / plan.gpus / max(simulation.ended_at, 1.0),
        "utilisation_with_queue": simulation.useful_with_queue / plan.gpus / max(simulation.queue_seconds, 1.0),
        "waits": {
            group: (len(some), percentile(some, 0.5), percentile(some, 0.99), max(some))
            for group, some in sorted(waits.items())
        },
        "starved": len(simulation.rules.starved),
        "lost": plan.jobs - sum(row.status in TERMINAL for row in rows),
        "doubled": doubled,
        "claimed over the limit": simulation.rules.over_limit,
        "failed": sum(row.status is JobStatus.FAILED for row in rows),
        "counts": dict(counts),
        "costs": {call: (costs.calls[call], costs.statements[call], costs.seconds[call]) for call in costs.calls},
        "per_job": {call: number / plan.jobs for call, number in calls.items()},
    }


def missed_marks(found: Mapping[str, Any]) -> list[str]:
    """Why the exit status is 1."""
    used = found["utilisation_with_queue"]
    missed = [f"{used:.1%} of the GPUs' time was used while there was a queue"] if used < LEAST_UTILISATION else []
    counts = {name: found[name] for name in ("starved", "lost", "claimed over the limit")}
    counts["doubled"] = len(found["doubled"])
    return missed + [f"{number} jobs were {name}" for name, number in counts.items() if number]


THREADS, MESSAGES = 4, 3000


def processor_seconds(process: psutil.Process) -> float:
    """Of a process and its children, including children that have ended."""
    return sum(process.cpu_times()[:4]) + sum(sum(child.cpu_times()[:4]) for child in process.children())


def measure_postgres(url: str) -> tuple[dict[str, dict[str, float]], int]:
    """Rates of the calls of several threads at once, with processor `seconds` of one; and the jobs claimed twice."""
    claims, rates = list[Claim](), dict[str, dict[str, float]]()
    with closing(Database(url)) as database, tempfile.TemporaryDirectory() as data:
        settings = Settings(_env_file=None, database_url=url, data=Path(data))
        submissions = submissions_of(database, Messages(), settings)
        spec, scope = a_spec(compute={"device": "cuda"}), scope_of(database, "burst", KeyLimits())
        # of a busy worker, which sends no messages
        sweeps = Sweep(settings=settings, enqueue=lambda *_: None, has_free_slot=lambda: False, worker_kinds=GPU)

        def claim(_: int) -> None:
            with database.session() as session:
                claims.append(cast(Claim, claim_one(session, worker="worker", lease_seconds=3600)))

        def held(action: Callable[[Session, Claim], object], number: int) -> None:
            with database.session() as session:
                action(session, claims[number % len(claims)])

        progress = partial(attempts.record_progress, stage=Stage.SOLVE, overall=0.5, fraction=0.5, eta_seconds=60.0)
        calls: dict[str, tuple[int, Callable[[int], object]]] = {
            "submission": (5000, lambda _: submissions.store(spec, scope=scope)),
            "claim": (200, claim),  # with a long queue
            "renewal": (4000, partial(held, partial(attempts.renew, lease_seconds=3600))),
            "cancel check": (4000, partial(held, attempts.job_of)),
            "progress": (3000, partial(held, progress)),
            "sweep": (100, lambda _: sweeps.sweep()),
            "end": (200, partial(held, end_one)),
        }
        with database.session(read_only=True) as session:
            process = psutil.Process(session.scalars(select(text("pg_backend_pid()"))).one())
            server = cast(psutil.Process, process.parent())
        for call, (number, make) in calls.items():
            number_all(database, most=NUMBERINGS_LIMIT)  # else the first sweep would number the events of all
            costs, before, began = Costs(), processor_seconds(server), time.perf_counter()
            with ThreadPoolExecutor(THREADS) as pool, listening(costs), costs.of(call):
                list(pool.map(make, range(number)))
            seconds, used = time.perf_counter() - began, processor_seconds(server) - before
            of_one = {"seconds": used / number, "statements": costs.statements[call] / number}
            rates[call] = {"per_second": number / seconds, **of_one}
    return rates, len(claims) - len({one.job_id for one in claims})


def measure_valkey() -> dict[str, float]:
    """Messages that one thread of the API sends."""
    with start_valkey() as valkey:
        queue = Queue(Settings(_env_file=None, broker_url=valkey.url))
        queue.enqueue(str(uuid4()), worker_kind=WorkerKind.GPU)
        before, began = processor_seconds(valkey.process), time.perf_counter()
        for _ in range(MESSAGES):
            queue.enqueue(str(uuid4()), worker_kind=WorkerKind.GPU)
        seconds, used = time.perf_counter() - began, processor_seconds(valkey.process) - before
        queue.close()
    return {"per_second": MESSAGES / seconds, "seconds": used / MESSAGES}


MORE, WORTH_A_CHANGE = 10, 0.1  # times the load; part of the processor time
CONNECTIONS = 100  # PostgreSQL's default
CHANGES = {
    "sweep": "let a few workers sweep for all, over a connection that stays open",
    "progress": "write progress every few seconds, and only if it has changed",
    "cancel check": "look for a cancel request together with the renewal, or for all jobs of a machine in one read",
}


def print_figures(found: Mapping[str, Any], *, seconds: float) -> None:
    plan, counts = Scenario(**found["scenario"]), Counter(found["counts"])
    print(
        f"{plan.gpus} GPUs and {plan.jobs:,} jobs in {24 * plan.days:g} hours, seed {plan.seed}: {found['hours']:.1f} "
        f"simulated hours in {seconds:.0f} s. Of the GPUs' time, {found['utilisation_with_queue']:.1%} gave results in "
        f"the {found['hours_with_queue']:.1f} hours in which a job was queued that could start, and "
        f"{found['utilisation']:.1%} in all.\n\n| tenant, priority | jobs | wait p50 | p99 | longest |\n{'|---' * 5}|"
    )
    for group, (number, *waits) in found["waits"].items():
        print(f"| {group} | {number:,} | {' | '.join(f'{wait / 60:.1f} min' for wait in waits)} |")
    _, statements, waited = map(sum, zip(*found["costs"].values(), strict=True))
    print(
        f"\nStarved: {found['starved']}. Lost: {found['lost']}. Doubled: {len(found['doubled'])}. Claimed over the "
        f"limit: {found['claimed over the limit']}. Submissions refused over the limit: {counts['refused']:,}.\n"
        f"Attempts lost with their worker: {counts['lost attempts']}; jobs that failed since three were: "
        f"{found['failed']}. Results of workers that were cut off, refused since their jobs were queued again: "
        f"{counts['late results refused']}.\nStatements per job: {statements / plan.jobs:.0f} as simulated, in "
        f"{1e3 * waited / plan.jobs:.0f} ms of PostgreSQL.\n"
    )


def print_rates(found: Mapping[str, Any], rates: Mapping[str, dict[str, float]], valkey: dict[str, float]) -> None:
    plan, per_job = Scenario(**found["scenario"]), found["per_job"]
    arriving = plan.jobs / plan.seconds
    needed = {call: per_job[call] * rate["seconds"] for call, rate in rates.items()}  # of processor time, for a job
    print(f"| call of {plan.gpus} workers | per job | statements | {THREADS} threads | PostgreSQL | cores | x {MORE} |")
    print("|---" * 7 + "|")
    for call, rate in rates.items():
        measured = f"{rate['statements']:.1f} | {rate['per_second']:.0f} per s | {1e3 * rate['seconds']:.2f} ms"
        cores = arriving * needed[call]
        print(f"| {call} | {per_job[call]:.1f} | {measured} | {cores:.3f} | {MORE * cores:.2f} |")
    statements = sum(per_job[call] * rate["statements"] for call, rate in rates.items())
    total, once = sum(needed.values()), sum(needed[call] for call in ("submission", "claim", "renewal", "end"))
    messages = MORE * arriving * per_job["claim"]
    print(
        f"\nThat is {statements:,.0f} statements per job. One core of PostgreSQL carries {1 / total:.2f} jobs of this "
        f"length per second, and {1 / once:.1f} without sweeps, cancel checks and progress; this load is "
        f"{arriving:.2f}. A thread of the API sends {valkey['per_second']:,.0f} messages per second, and Valkey's one "
        f"thread takes {1 / valkey['seconds']:,.0f}.\n\n"
        f"At {MORE} times the load PostgreSQL needs {MORE * arriving * total:.1f} cores.",
        *(
            f"{needed[call] / total:.0%} of that is for each {call}: {change}."
            for call, change in CHANGES.items()
            if needed[call] > WORTH_A_CHANGE * total
        ),
        f"{MORE * plan.gpus:,} workers hold a connection or two each, and PostgreSQL accepts {CONNECTIONS} by default: "
        f"put a pooler before it. The broker gets {messages:.1f} messages per second, "
        f"{messages * valkey['seconds']:.2%} of what one Valkey carries: leave it as it is.\n",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=100, help="one worker each (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--days", type=float, default=1.0, help="in which they are submitted (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--lost", type=float, default=0.05, help="part of attempts that lose their worker")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = vars(parser.parse_args())
    result = options.pop("json")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(WARNING))  # not each submission
    with start_postgres(durable=True) as postgres, postgres.server.database() as url:
        upgrade(url)
        simulation, began = Simulation(url, Scenario(**options)), time.monotonic()
        simulation.run()
        found = figures_of(simulation)
        print_figures(found, seconds=time.monotonic() - began)
        rates, twice = measure_postgres(url)
    valkey = measure_valkey()
    print_rates(found, rates, valkey)
    found["doubled"] += [f"{twice} jobs were claimed by two threads"] * bool(twice)
    if result is not None:
        result.write_text(json.dumps({**found, "rates": {**rates, "message": valkey}}, indent=2) + "\n")
    missed = missed_marks(found)
    print("; ".join(missed) if missed else "all marks are met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
