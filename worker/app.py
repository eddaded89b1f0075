"""The Celery application: `celery -A worker.app worker`. Starts one sweep in the worker's main process."""

import logging

from celery import Celery
from celery.signals import worker_ready, worker_shutdown
from celery.worker import state
from celery.worker.consumer import Consumer
from kombu.exceptions import OperationalError

from replaceme_core.broker import broker_config
from replaceme_core.errors import QueueUnreachable
from replaceme_core.settings import RUN_JOB_TASK, Settings
from worker.sweep import Sweep

logger = logging.getLogger(__name__)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # its lines for each request hold presigned upload addresses

app = Celery("replaceme", include=["worker.tasks"], set_as_current=True)
app.conf.update(broker_config(Settings()))

_sweeps: list[Sweep] = []


def ring(job_id: str) -> None:
    """Send the message for a job. Raises `QueueUnreachable`."""
    try:
        app.send_task(RUN_JOB_TASK, args=[job_id])
    except (OperationalError, OSError) as error:
        # only the kind of error: its text may hold the address of the broker with a password
        kind = type(error.__cause__ or error).__name__
        raise QueueUnreachable(f"no message could be sent for job {job_id} ({kind})") from error


@worker_ready.connect  # type: ignore[untyped-decorator]
def start_sweep(sender: Consumer, **_: object) -> None:
    """Also sent after each reconnection to the broker: one sweep is enough."""
    if _sweeps:
        return
    slots = max(int(getattr(sender.pool, "num_processes", 1) or 1), 1)
    sweep = Sweep(settings=Settings(), ring=ring, has_room=lambda: len(state.reserved_requests) < slots)
    sweep.keep_from_forks()
    sweep.start()
    _sweeps.append(sweep)


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def stop_sweep(**_: object) -> None:
    for sweep in _sweeps:
        sweep.stop()
