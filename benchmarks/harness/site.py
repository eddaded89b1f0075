"""One installation of the product, whose processes are started as an operator starts them.

A `Site` has a data directory, a database, a broker, a directory hub with one tiny model, and the environment variables
that name them. Its runner is a stub that loads no model.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from celery import Celery

from benchmarks.harness.jobs import events_of, job_of, owner_of
from benchmarks.harness.processes import WAIT_SECONDS, Started, wait_until
from benchmarks.harness.servers import free_port
from benchmarks.harness.stub_model import write_stub_model
from replaceme_core.broker import broker_config, queue_of
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import changes
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import Job
from replaceme_core.ledger.states import TERMINAL, JobStatus
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.spec import DEFAULT_PRIORITY, CompressionSpec, EvaluationSpec, ModelRef, OutputSpec
from replaceme_core.runner.messages import Stage
from replaceme_core.settings import RUN_JOB_TASK, Settings
from worker.workspace import CHECKPOINTS, TEMPORARY, jobs_with_checkpoints

STUB_RUNNER = Path(__file__).parent / "runners" / "stub_runner.py"
MODEL = "acme/tiny"
SECRET = "hf_never_to_be_seen"


@dataclass(kw_only=True)
class Site:
    """One installation. `extra` holds environment variables by name."""

    data: Path
    database_url: str
    broker_url: str | None
    extra: dict[str, str] = field(default_factory=dict)
    started: list[Started] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hub_directory.mkdir(parents=True)
        write_stub_model(self.hub_directory / MODEL)
        self.database = Database(self.database_url)
        self.settings = self._settings()

    @property
    def hub_directory(self) -> Path:
        return self.data / "hub"

    def environment(self) -> dict[str, str]:
        """The complete environment of the product's processes."""
        ours = {
            "REPLACEME_DATA": str(self.data),
            "REPLACEME_DATABASE_URL": self.database_url,
            "REPLACEME_HUB": f"dir:{self.hub_directory}",
            "REPLACEME_HUB_READ_TOKEN": SECRET,
            "REPLACEME_HUB_WRITE_TOKEN": SECRET,
            "REPLACEME_OUTPUT_NAMESPACES": "local, acme",
            "REPLACEME_SWEEP_SECONDS": "0.5",
            "REPLACEME_DRAIN_SECONDS": "15",
            "REPLACEME_RUNNER_COMMAND": json.dumps([sys.executable, str(STUB_RUNNER)]),
            "HF_TOKEN": SECRET,
            "COVERAGE_DISABLED": "1",
            **self.extra,
        }
        if self.broker_url is not None:
            ours["REPLACEME_BROKER_URL"] = self.broker_url
        kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLACEME_")}
        return {**kept, **ours}

    def start_worker(
        self, *, pool: str = "prefork", concurrency: int = 1, name: str = "w1", queues: str | None = None
    ) -> Started:
        """Start `celery worker`, with `-Q` if `queues` is given; returns once it receives messages."""
        started = self.launch_worker(pool=pool, concurrency=concurrency, name=name, queues=queues)
        self.wait_for_worker(started)
        return started

    def launch_worker(
        self, *, pool: str = "prefork", concurrency: int = 1, name: str = "w1", queues: str | None = None
    ) -> Started:
        """Start `celery worker` without waiting until it receives messages."""
        command = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--loglevel", "INFO"]
        command += ["-P", pool, "-c", str(concurrency), "-n", f"{name}@%h"]
        command += [] if queues is None else ["-Q", queues]
        return self._start(command, log=self.data / f"worker-{name}-{len(self.started)}.log")

    def start_once(self, *options: str) -> Started:
        """Start a worker that runs at most one job."""
        command = [sys.executable, "-m", "worker.once", *options]
        return self._start(command, log=self.data / f"once-{len(self.started)}.log")

    def wait_for_worker(self, started: Started) -> None:
        """Wait until a worker receives messages."""
        self._ready(started, lambda: " ready." in started.log.read_text())

    def start_api(self) -> Started:
        """Start the API on a free port; returns once it answers."""
        port = free_port()
        command = [sys.executable, "-m", "api.http.server", "--host", "127.0.0.1", "--port", str(port)]
        started = self._start(command, log=self.data / f"api-{len(self.started)}.log")
        started.url = f"http://127.0.0.1:{port}"
        self._ready(started, lambda: _answers(f"{started.url}/jobs"))
        return started

    def add(
        self,
        *,
        enqueue: bool = True,
        owner: str = "tests",
        priority: int = DEFAULT_PRIORITY,
        max_queue_seconds: float | None = None,
        max_runtime_seconds: float | None = None,
        worker_kind: WorkerKind | None = None,
        **labels: str,
    ) -> str:
        """Add a job for the stub runner and, if `enqueue`, send its message. `labels`: underscores stand for dots."""
        spec = CompressionSpec(
            model=ModelRef(repo_id=MODEL),
            ratio=0.25,
            calibration=CalibrationSpec(dataset="builtin:pydoc-topics"),
            evaluation=EvaluationSpec(enabled=False),
            output=OutputSpec(repo_id="acme/smaller"),
            labels={name.replace("_", "."): value for name, value in labels.items()},
            priority=priority,
            max_queue_seconds=max_queue_seconds,
            max_runtime_seconds=max_runtime_seconds,
        )
        with self.database.session() as session:
            job_id = changes.add(session, spec=spec, owner=owner, default_worker_kind=worker_kind).id
        if enqueue:
            self.enqueue(job_id, worker_kind=worker_kind)
        return job_id

    def enqueue(self, job_id: str, *, worker_kind: WorkerKind | None = None) -> None:
        """Send the message for a job, as the API does."""
        with Celery("tests", set_as_current=False) as app:
            app.conf.update(broker_config(self.settings))
            app.send_task(RUN_JOB_TASK, args=[job_id], queue=queue_of(worker_kind))

    def job(self, job_id: str) -> Job:
        return job_of(self.database, job_id)

    def cancel(self, job_id: str) -> None:
        with self.database.session() as session:
            changes.request_cancel(session, job_id, owner=owner_of(session, job_id))

    def event_types(self, job_id: str) -> list[str]:
        return [str(event.type) for event in events_of(self.database, job_id)]

    def wait_for_end(self, job_id: str, *, seconds: float = WAIT_SECONDS) -> Job:
        wait_until(lambda: self.job(job_id).status in TERMINAL, seconds=seconds, what=f"the end of job {job_id}")
        return self.job(job_id)

    def wait_for_runner(self, job_id: str, *, seconds: float = WAIT_SECONDS) -> psutil.Process:
        """The runner of the job, once it has begun to calibrate."""

        found: list[psutil.Process] = []

        def calibrates() -> bool:
            job = self.job(job_id)
            assert job.status not in TERMINAL, job
            if job.status is JobStatus.RUNNING and job.stage is Stage.CALIBRATE:
                found[:] = self.runners()
            return bool(found)

        wait_until(calibrates, seconds=seconds, what="a runner that calibrates")
        return found[0]

    def runners(self) -> list[psutil.Process]:
        """Running runners and their descendants, oldest first: their HOME lies in this site's workspace.

        A process that is being replaced by its program has no environment for a moment, and is not among them.
        """
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                home = process.environ().get("HOME", "")
                if home.startswith(str(self.settings.workspace)) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def workspaces(self) -> list[str]:
        """Names in the workspace: directories of attempts, and checkpoints of jobs."""
        root = self.settings.workspace
        names = (
            [entry.name for entry in root.iterdir() if entry.name not in (CHECKPOINTS, TEMPORARY)]
            if root.is_dir()
            else []
        )
        return sorted(names) + sorted(f"{CHECKPOINTS}/{job_id}" for job_id in jobs_with_checkpoints(root))

    def wait_for_empty_workspace(self) -> None:
        """The worker removes the checkpoints of a job after it has written that the job has ended."""
        wait_until(lambda: not self.workspaces(), what="an empty workspace")

    def publications(self) -> list[Mapping[str, object]]:
        """Commits to the output repository, oldest first."""
        log = self.hub_directory / ".commits" / "models" / "acme" / "smaller" / "commits.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def close(self) -> None:
        for started in self.started:
            if started.process.poll() is None:
                started.kill_tree()
        for process in self.runners():
            process.kill()
        self.database.close()

    def _settings(self) -> Settings:
        names = {name.lower(): value for name, value in self.environment().items() if name.startswith("REPLACEME_")}
        values = {name.removeprefix("replaceme_"): value for name, value in names.items()}
        values.pop("runner_command")
        return Settings.model_validate(values)

    def _start(self, command: list[str], *, log: Path) -> Started:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=self.environment(), cwd=self.data, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        started = Started(process=process, log=log)
        self.started.append(started)
        return started

    def _ready(self, started: Started, condition: Callable[[], bool]) -> None:
        def ready() -> bool:
            assert started.process.poll() is None, started.log.read_text()
            return condition()

        wait_until(ready, what=f"start of {started.log.name}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500
    except OSError:
        return False
