"""An installation that faults are done to: real servers, two worker processes, a Hub on a socket; and what must hold.

It outlives a test; what one has killed is started again before the next one.
"""

import shutil
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import psutil
from sqlalchemy import delete, select

from benchmarks.harness.fake_hub.access import READ_TOKEN, WRITE_TOKEN
from benchmarks.harness.fake_hub.server import FakeHub
from benchmarks.harness.gates import open_gates
from benchmarks.harness.history import replayed, written
from benchmarks.harness.processes import Started, wait_until
from benchmarks.harness.servers import RestartablePostgres, RestartableValkey
from benchmarks.harness.site import MODEL, Site
from benchmarks.harness.specs import a_spec
from replaceme_core.jobs.records import Job
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.states import TERMINAL, JobStatus
from replaceme_core.jobs.tables import JobRow
from replaceme_core.spec import CompressionSpec

LEASE_SECONDS = 3.0
SWEEP_SECONDS = 0.3
WORKERS = ("w1", "w2")
END_SECONDS = 180.0
"""A frozen worker may hold a row in an open transaction until the server ends that, after half a minute."""
TIDY_SECONDS = 15.0


@dataclass(kw_only=True)
class Cluster(Site):
    """`postgres` and `valkey` are None where the servers are not ours to take away."""

    hub: FakeHub
    postgres: RestartablePostgres | None
    valkey: RestartableValkey | None
    workers: dict[str, Started] = field(default_factory=dict)
    worker_extra: dict[str, dict[str, str]] = field(default_factory=dict)
    """Settings of one worker alone."""

    def __post_init__(self) -> None:
        ours = {
            "REPLACEME_HUB": self.hub.url,
            "REPLACEME_HUB_READ_TOKEN": READ_TOKEN,
            "REPLACEME_HUB_WRITE_TOKEN": WRITE_TOKEN,
            "REPLACEME_LEASE_SECONDS": str(LEASE_SECONDS),
            "REPLACEME_SWEEP_SECONDS": str(SWEEP_SECONDS),
            "REPLACEME_MAX_ATTEMPTS": "20",  # a busy machine may cost an attempt more than a fault did
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        self.extra = {**ours, **self.extra}
        super().__post_init__()

    def start_workers(self) -> None:
        """Every worker is there and takes messages; those that were killed are new."""
        begun = [name for name in WORKERS if name not in self.workers or self.workers[name].process.poll() is not None]
        for name in begun:
            self.workers[name] = self.begin_worker(name)
        for name in begun:
            self.wait_for_worker(self.workers[name])

    def begin_worker(self, name: str) -> Started:
        before = self.extra
        self.extra = {**before, **self.worker_extra.get(name, {})}
        try:
            return self.launch_worker(name=name)
        finally:
            self.extra = before

    def spec(self, **fields: object) -> CompressionSpec:
        revision = self.hub.commits(MODEL)[-1].oid
        return a_spec(
            **{
                "model": {"repo_id": MODEL, "revision": revision},
                "calibration": {"dataset": "builtin:pydoc-topics", "samples": 8, "max_length": 64},
                "output": f"acme/out-{uuid4().hex[:12]}",
                "ratio": 0.25,
                "compute": {"device": "cpu", "threads": 1},
                **fields,
            }
        )

    def submit(self, *, enqueue: bool = True, **fields: object) -> Job:
        """A job of its own output repository, as the API writes it."""
        with self.database.session() as session:
            job = Jobs(session).add(spec=self.spec(**fields), owner="tests")
        if enqueue:
            self.enqueue(job.id)
        return job

    def holder(self, job_id: str) -> tuple[Started, psutil.Process]:
        """The worker that holds the job, and the process of its pool that supervises it."""
        worker = self.job(job_id).worker
        assert worker is not None, "nobody holds the job"
        host, _, pid = worker.rpartition(":")
        assert host == socket.gethostname()
        supervisor = psutil.Process(int(pid))
        above = {each.pid for each in supervisor.parents()}
        return next(
            each for each in self.workers.values() if each.pid in above or each.pid == supervisor.pid
        ), supervisor

    def outlive(self, job: Job, *, commits: int = 1) -> Job:
        """What must hold after any fault; returns the job as it ended."""
        wait_until(
            lambda: self.job(job.id).status in TERMINAL, seconds=END_SECONDS, what=f"the end of {self.story(job.id)}"
        )
        ended = self.job(job.id)
        assert ended.status is JobStatus.SUCCEEDED, self.story(job.id)
        self.assert_published_once(ended, commits=commits)
        self.assert_history(job.id)
        return ended

    def assert_published_once(self, job: Job, *, commits: int = 1) -> None:
        assert job.spec.output.repo_id is not None
        history = self.hub.commits(job.spec.output.repo_id)[1:]  # the first is the Hub's own
        assert len(history) == commits, [commit.message for commit in history]
        assert [commit.message.strip() for commit in history] == [f"ReplaceMe-Job: {job.id}"]
        assert job.result is not None
        assert job.result.revision == history[-1].oid

    def assert_history(self, job_id: str) -> None:
        with self.database.session(read_only=True) as session:
            events = Jobs(session).events(job_id, limit=1000).items
            row = written(session, job_id)
        assert sum(event.type in TERMINAL for event in events) == 1, self.story(job_id)
        assert replayed(events) == row, self.story(job_id)

    def assert_tidy(self) -> None:
        """No process and no file is left of any attempt."""
        wait_until(lambda: not self.strays(), seconds=TIDY_SECONDS, what=f"the end of {self.strays()}")
        wait_until(lambda: not self.workspaces(), seconds=TIDY_SECONDS, what=f"removal of {self.workspaces()}")

    def strays(self) -> list[str]:
        """Processes of this installation that are neither a living worker nor the pool of one."""
        known: set[int] = set()
        for started in self.started:
            if started.process.poll() is None:
                known |= {started.pid, *(child.pid for child in psutil.Process(started.pid).children())}
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid in known or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if any(str(self.data) in value for value in process.environ().values()):
                    found.append(f"{process.pid} {' '.join(process.cmdline()[:4])}")
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def is_quiet(self) -> bool:
        with self.database.session(read_only=True) as session:
            active = session.scalars(select(JobRow.id).where(JobRow.status.not_in(TERMINAL)).limit(1)).one_or_none()
        return active is None and not self.workspaces()

    def story(self, job_id: str) -> str:
        """For a failed assertion: what the ledger says."""
        job = self.job(job_id)
        with self.database.session(read_only=True) as session:
            events = Jobs(session).events(job_id, limit=1000).items
        lines = [f"{event.seq} {event.type} attempt {event.attempt} {dict(event.data)}" for event in events]
        return "\n".join([f"job {job.id}: {job.status}, error {job.error}", *lines])

    def renew(self) -> None:
        """After a test: the next one finds nothing of it, even if it failed."""
        self.hub.faults.clear()
        open_gates(self.data)
        deadline = time.monotonic() + TIDY_SECONDS
        while not self.is_quiet() and time.monotonic() < deadline:
            time.sleep(0.1)
        if not self.is_quiet():
            for started in self.started:
                started.kill_tree()
            with self.database.session() as session:
                session.execute(delete(JobRow))
            shutil.rmtree(self.settings.workspace, ignore_errors=True)
        # the next job downloads its model again
        shutil.rmtree(self.settings.hub_cache, ignore_errors=True)


def seed_stub_model(hub: FakeHub) -> None:
    """Enough of a model for the stub runner."""
    config = b'{"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 8}'
    hub.add_model(MODEL, {"config.json": config, "model.safetensors": b"weights of the source"})


def seed_real_model(hub: FakeHub, directory: Path) -> None:
    """A tiny random model with its tokenizer."""
    from tests.fixtures.models.tiny import save_tiny

    hub.add_model(MODEL, save_tiny(directory))
