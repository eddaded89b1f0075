"""The port to the message broker: ring, so that a worker looks at a job. The only module here that knows Celery."""

import tempfile
from collections.abc import Mapping
from threading import Lock

from celery import Celery
from kombu.exceptions import KombuError

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.broker.celery_config import broker_config, queue_of
from replaceme_core.errors import QueueUnreachable
from replaceme_core.settings import RUN_JOB_TASK, Settings

_PATIENCE_SECONDS = 2
_TRANSPORT_KEY = "broker_transport_options"


class Queue:
    """Sends by the task's name; reads its settings and connects on first use. May be used from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = Lock()
        self._app: Celery | None = None

    def enqueue(self, job_id: str, *, worker_kind: WorkerKind | None = None) -> None:
        """Ring for a job, at the workers it is for; `None`: any.

        Raises `QueueUnreachable` after a few seconds at most; never tries again by itself.
        """
        try:
            self._celery().send_task(
                RUN_JOB_TASK, args=[job_id], queue=queue_of(worker_kind), ignore_result=True, retry=False
            )
        except (KombuError, OSError) as error:
            raise _unreachable(error) from error

    def ping(self) -> None:
        """Raises `QueueUnreachable`."""
        try:
            app = self._celery()
            with app.connection_for_write() as connection:
                connection.default_channel  # noqa: B018  # a new connection, and its channel's first act is a ping
            folder = app.conf[_TRANSPORT_KEY].get("data_folder_out")
            if folder is not None:
                with tempfile.TemporaryFile(dir=folder):
                    pass
        except (KombuError, OSError) as error:
            raise _unreachable(error) from error

    def close(self) -> None:
        """Close all pooled connections."""
        with self._lock:
            if self._app is not None:
                self._app.close()

    def _celery(self) -> Celery:
        with self._lock:
            if self._app is None:
                app = Celery("replaceme-api", set_as_current=False)
                app.conf.update(_impatient(broker_config(self._settings)))
                self._app = app
            return self._app


def _unreachable(error: BaseException) -> QueueUnreachable:
    # only the kind of error: its text may hold the broker's address with a password
    return QueueUnreachable(f"the broker does not take messages ({type(error.__cause__ or error).__name__})")


def _impatient(config: Mapping[str, object]) -> dict[str, object]:
    """A worker may wait for its broker; a client who waits for an answer may not."""
    options = config.get(_TRANSPORT_KEY)
    transport = dict(options) if isinstance(options, Mapping) else {}
    transport |= {"max_retries": 0, "retry_on_timeout": False}
    transport |= {"socket_timeout": _PATIENCE_SECONDS, "socket_connect_timeout": _PATIENCE_SECONDS}
    return {**config, _TRANSPORT_KEY: transport, "broker_connection_timeout": _PATIENCE_SECONDS}
