"""`python -m worker.once`: run at most one job to its end, and end with 0, also where there was none.

For schedulers that start a process per job, such as a ScaledJob of KEDA (docs/how-to/kubernetes.md). It sweeps first:
where no other worker runs, nobody else requeues what a lost one has left. No message wakes it up, so it takes one off
the broker, where they would pile up. Where nothing can be claimed it ends with 1, so that the scheduler shows it.
"""

import signal

if __name__ == "__main__":  # the first process of a container loses a signal for which it has no handler yet
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

import argparse
import logging
import os
from collections.abc import Sequence

from kombu.exceptions import OperationalError

from replaceme_core import telemetry
from replaceme_core.broker import QUEUE
from replaceme_core.errors import InvalidInput, ReplaceMeError
from replaceme_core.hardware import WorkerKind
from replaceme_core.settings import read_settings
from replaceme_core.signals import handle
from worker.app import (
    app,
    choose_sandbox,
    drain,
    make_supervisor,
    make_sweep,
    select_worker_kinds,
    stop_sweep,
    use_own_temporary_directory,
)

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Raises `SystemExit` for a kind that this machine cannot serve, and for a sandbox that does not work."""
    parser = argparse.ArgumentParser(prog="worker.once", description="Run at most one job, then end.")
    parser.add_argument("--queues", type=WorkerKind, choices=list(WorkerKind), help="kind of jobs; default: all")
    named = parser.parse_args(arguments).queues
    settings = read_settings()
    ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handle(lambda *_: drain.begin(seconds=settings.drain_seconds), *ends)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
    telemetry.configure_logs(settings.log_format, service="worker")
    telemetry.configure_spans(os.environ, service="worker")
    try:
        kinds = select_worker_kinds(None if named is None else (named,), settings=settings, environ=os.environ)
    except InvalidInput as error:
        raise SystemExit(f"this worker cannot start: {error}") from error
    choose_sandbox()
    use_own_temporary_directory()
    sweep = make_sweep(kinds, process_ids=lambda: [os.getpid()], has_free_slot=lambda: False)
    supervisor = make_supervisor(kinds)
    sweep.sweep()
    sweep.start()
    try:
        if not drain.has_begun:
            take_message((*kinds, QUEUE))
            supervisor.run(None)
    except ReplaceMeError as error:  # another process would fail as well
        raise SystemExit(f"this worker cannot run a job: {error}") from error
    finally:
        supervisor.database.close()
        stop_sweep()
    return 0


def take_message(queues: Sequence[str]) -> None:
    """Take one message off the first of `queues` that has any. A broker that is away, or gives none, has none."""
    connection = app.connection_for_read()
    try:
        with connection:
            for name in queues:
                if connection.default_channel.basic_get(str(name), no_ack=True) is not None:
                    return
    except (OperationalError, OSError, *connection.recoverable_connection_errors) as error:
        # only the class of the error: its text may hold the address of the broker with a password
        logger.warning("no message could be taken off the broker (%s)", type(error).__name__)


if __name__ == "__main__":
    raise SystemExit(main())
