"""The Celery application: `celery -A worker.app worker`. Starts one sweep in the worker's main process.

With `-Q cpu` or `-Q gpu` a worker serves the jobs for that kind of worker and the jobs for any worker. Without `-Q` it
serves all jobs that this machine has the hardware for. The message of its one task wakes a worker up; the database
decides which job starts, if any.
"""

import logging
import math
import mmap
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from multiprocessing.util import Finalize

from celery import Celery, Task
from celery.apps.worker import Worker
from celery.signals import (
    celeryd_after_setup,
    setup_logging,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from celery.worker import state
from celery.worker.consumer import Consumer
from kombu.exceptions import OperationalError

from replaceme_core import telemetry
from replaceme_core.broker import QUEUE, broker_config, queue_of
from replaceme_core.errors import InvalidInput, QueueUnreachable, Unavailable
from replaceme_core.hardware import WorkerKind, local_worker_kinds
from replaceme_core.ledger.database import Database
from replaceme_core.runner.process import Confinement
from replaceme_core.runner.sandbox import SandboxMode
from replaceme_core.settings import RUN_JOB_TASK, Settings, read_settings, warn_of_unknown_settings
from replaceme_core.signals import outlives_terminal
from replaceme_core.telemetry import bound, from_message, message_headers
from worker.supervisor import Supervisor, UnfitMachine
from worker.sweep import Sweep
from worker.workspace import TEMPORARY, locked_directory

logger = logging.getLogger(__name__)


class Drain:
    """A shutdown in two steps: the worker takes no new job, then it releases the job that is still running.

    The signal arrives in the main process, and the work is done in its threads or in processes that it forked. They
    share one number: create this before they are forked.
    """

    def __init__(self) -> None:
        self._release_at = memoryview(mmap.mmap(-1, 8)).cast("d")  # by the monotonic clock, which is the machine's
        self._release_at[0] = math.inf

    def begin(self, *, seconds: float) -> None:
        """Take no new job from now on, and release the running ones after `seconds`. May be called again."""
        self._release_at[0] = min(self._release_at[0], time.monotonic() + seconds)

    @property
    def has_begun(self) -> bool:
        """Whether no new job may be taken."""
        return self._release_at[0] < math.inf

    @property
    def must_release(self) -> bool:
        """Whether running jobs must be released now."""
        return self._release_at[0] <= time.monotonic()


app = Celery("replaceme", set_as_current=True)
try:
    app.conf.update(broker_config(read_settings()))
except InvalidInput as wrong:  # whatever imports this module, such as Celery's command, needs all settings
    raise SystemExit(f"this worker cannot start: {wrong}") from None

drain = Drain()
"""The shutdown of this worker; created before its pool is forked, so that all its processes share it."""

confinements: list[Confinement] = []
"""How runners are confined: one entry, chosen at the start and before the pool is forked."""

_sweeps: list[Sweep] = []
_held = ExitStack()
"""What the main process holds until it ends normally. Global: a process that it forks forgets its finalizers, and would
release what they alone hold."""


def enqueue(job_id: str, worker_kind: WorkerKind | None) -> None:
    """Send the message for a job to the queue of its kind of worker. Raises `QueueUnreachable`."""
    queue = queue_of(worker_kind)
    with telemetry.publication(job_id, queue=queue):
        try:
            app.send_task(RUN_JOB_TASK, args=[job_id], queue=queue, headers=message_headers())
        except (OperationalError, OSError) as error:
            # only the class of the error: its text may hold the address of the broker with a password
            kind = type(error.__cause__ or error).__name__
            raise QueueUnreachable(f"no message could be sent for job {job_id} ({kind})") from error


def served_worker_kinds() -> tuple[WorkerKind, ...] | None:
    """The kinds of jobs whose queues this worker consumes from; `None`: all."""
    named = tuple(worker_kind for worker_kind in WorkerKind if worker_kind.value in app.amqp.queues.consume_from)
    return None if len(named) in (0, len(WorkerKind)) else named


@setup_logging.connect  # type: ignore[untyped-decorator]
def set_up_logs(loglevel: int, logfile: str | None, **_: object) -> None:
    """Log as the API does. Celery sets up no logs of its own where this signal has a receiver.

    Each process of the pool sends it again; they have inherited what their parent has set up.
    """
    if telemetry.configure_logs(Settings().log_format, service="worker", level=loglevel, file=logfile, replace=True):
        app.log.redirect_stdouts("WARNING")


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def listen_to_queues(instance: Worker, **_: object) -> None:
    """Consume from the queue of jobs for any worker, and from the queues named by `-Q`, else those served here.

    Raises `SystemExit` if `gpu` is named and there is no GPU.
    """
    queues = instance.app.amqp.queues
    try:
        served = select_worker_kinds(served_worker_kinds(), settings=Settings(), environ=os.environ)
    except InvalidInput as error:
        raise SystemExit(f"this worker cannot start: {error}") from error
    queues.deselect([worker_kind.value for worker_kind in WorkerKind if worker_kind not in served])
    for name in (QUEUE, *(worker_kind.value for worker_kind in served)):
        queues.select_add(queues[name])


def select_worker_kinds(
    named: Sequence[WorkerKind] | None, *, settings: Settings, environ: Mapping[str, str]
) -> tuple[WorkerKind, ...]:
    """The kinds of job that a worker serves if its command names the queues `named`; `None`: all that it can run.

    A job for a GPU that ran on a CPU would take weeks; it waits for another worker. Raises `InvalidInput` if `gpu` is
    named on a machine without one.
    """
    wanted = tuple(named or WorkerKind)
    if WorkerKind.GPU not in wanted or WorkerKind.GPU in local_worker_kinds(
        environ, runner_command=settings.runner_command
    ):
        return wanted
    if named is not None:
        raise InvalidInput("its command names the queue gpu, and torch sees no GPU on this machine", field="queues")
    logger.warning("torch sees no GPU on this machine: jobs for workers with one are left to others")
    return (WorkerKind.CPU,)


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def use_own_temporary_directory(**_: object) -> None:
    """Put temporary files where a sweep finds them. In the system's place, the pool's own would stay after SIGKILL.

    Raises `SystemExit` if the workspace cannot be written.
    """
    name = f"worker-{os.getpid()}"
    try:
        place = _held.enter_context(locked_directory(Settings().workspace / TEMPORARY, name=name))
    except OSError as error:
        raise SystemExit(f"this worker cannot start: {error.filename} cannot be written: {error.strerror}") from error
    # held until multiprocessing has removed its own directory in it, which it does with priority -100
    Finalize(None, _held.close, exitpriority=-200)
    os.environ["TMPDIR"] = tempfile.tempdir = str(place)


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def choose_sandbox(**_: object) -> None:
    """Try how runners can be confined here, and say it. Raises `SystemExit` if a named sandbox does not work."""
    try:
        found = Settings().confinement()
    except InvalidInput as error:
        raise SystemExit(f"this worker cannot start: {error}") from error
    warn_of_unknown_settings()
    confinements[:] = [found]
    level = logging.WARNING if found.sandbox.mode is SandboxMode.NONE else logging.INFO
    logger.log(level, "sandbox of runners: %s", found.sandbox.describe())
    logger.info("memory limit of runners: %s", "none" if found.memory is None else found.memory.describe())


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def drain_at_sighup(**_: object) -> None:
    """Stop as at SIGTERM. Celery would start itself again, after the running job and all those that follow it, and so
    never while there are jobs; and it cannot where it was started with `python -m celery`.
    """
    is_ignored = outlives_terminal()

    def set_handler(**_: object) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.getsignal(signal.SIGTERM))

    worker_ready.connect(set_handler, weak=False)  # once Celery has set its own


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def begin_drain(how: str, **_: object) -> None:
    """Called in the main process, at SIGTERM (`how` is "Warm") and at SIGQUIT ("Cold")."""
    drain.begin(seconds=Settings().drain_seconds if how == "Warm" else 0)


@worker_ready.connect  # type: ignore[untyped-decorator]
def start_sweep(sender: Consumer, **_: object) -> None:
    """Start the sweep, once: the signal is also sent after each reconnection to the broker."""
    if _sweeps:
        return
    slots = max(int(getattr(sender.pool, "num_processes", 1) or 1), 1)
    sweep = make_sweep(
        served_worker_kinds(),
        process_ids=lambda: _pool_processes(sender),
        has_free_slot=lambda: len(state.reserved_requests) < slots and not drain.has_begun,
    )
    sweep.block_forks_during_sweep()
    sweep.start()


def make_sweep(
    kinds: Sequence[WorkerKind] | None, *, process_ids: Callable[[], Sequence[int]], has_free_slot: Callable[[], bool]
) -> Sweep:
    """The sweep of a worker for jobs of these kinds, which also reports it, until `stop_sweep`."""
    sweep = Sweep(
        settings=Settings(),
        enqueue=enqueue,
        has_free_slot=has_free_slot,
        worker_kinds=kinds,
        process_ids=process_ids,
        sandbox=confinements[0].sandbox.mode,
    )
    _sweeps.append(sweep)
    return sweep


def _pool_processes(consumer: Consumer) -> list[int]:
    """The processes of the pool; in pools without processes jobs run in this one."""
    try:
        info = consumer.pool.info or {}
    except AttributeError:  # of Celery's own code, while the pool ends
        return []
    return info.get("processes") or [os.getpid()]


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def export_spans(**_: object) -> None:
    """Called in each process of a pool of processes, at its end."""
    telemetry.flush_spans()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def stop_sweep(**_: object) -> None:
    for sweep in _sweeps:
        sweep.stop()
    telemetry.flush_spans()


@app.task(name=RUN_JOB_TASK, ignore_result=True, bind=True)  # type: ignore[untyped-decorator]
def run_job(task: Task, job_id: str) -> None:
    if drain.has_begun:  # the message was prefetched: send it to another worker
        queue, headers = task.request.delivery_info["routing_key"], task.request.headers
        app.send_task(RUN_JOB_TASK, args=[job_id], queue=queue, headers=headers)
        return
    supervisor = _supervisor(os.getpid())
    try:
        with bound(from_message(task.request.headers)):
            has_run = supervisor.run(job_id)
        while has_run and not drain.has_begun:  # one may start only now: its message came while its key was at a limit
            has_run = supervisor.run(None)
    except Unavailable as error:  # such as a database without the tables of this release
        level = logging.ERROR if isinstance(error, UnfitMachine) else logging.WARNING
        logger.log(level, "message for job %s: nothing was claimed, a sweep sends another: %s", job_id, error)


@cache
def _supervisor(_pid: int) -> Supervisor:
    """One supervisor for each process, because connections to a database do not survive a fork."""
    telemetry.configure_spans(os.environ, service="worker")  # here: its thread does not survive a fork either
    return make_supervisor(served_worker_kinds())


def make_supervisor(kinds: Sequence[WorkerKind] | None) -> Supervisor:
    """Of a worker for jobs of these kinds; `None`: all."""
    settings = Settings()
    return Supervisor(
        settings=settings,
        database=Database(settings.resolved_database_url),
        open_hub=settings.open_hub,
        confinement=confinements[0],
        worker_kinds=kinds,
        enqueue=enqueue,
        must_release=lambda: drain.must_release,
    )
