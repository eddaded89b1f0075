"""The port to the message broker: enqueue jobs for workers. The only module of the API that imports Celery."""

import tempfile
import time
from collections.abc import Mapping

from celery import Celery
from kombu.exceptions import KombuError

from replaceme_core.broker import QUEUE, broker_config, queue_of
from replaceme_core.errors import QueueUnreachable
from replaceme_core.hardware import WorkerKind
from replaceme_core.settings import RUN_JOB_TASK, Settings
from replaceme_core.telemetry import message_headers, publication

_TIMEOUT_SECONDS = 2
_REST_SECONDS = 5
"""After a failure. Without it the jobs of a sweep would wait for a hanging broker one after the other."""
_TRANSPORT_KEY = "broker_transport_options"


class Queue:
    """Sends tasks by name. Connects on first use; safe to use from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._app = Celery("replaceme-api", set_as_current=False)
        self._app.conf.update(_with_short_timeouts(broker_config(settings)))
        self._rests_until = 0.0  # by the monotonic clock

    def enqueue(self, job_id: str, *, worker_kind: WorkerKind | None = None) -> None:
        """Send a wake-up message for a job to workers of `worker_kind`; `None`: any worker.

        Raises `QueueUnreachable` within a few seconds, and then at once for some. Does not retry: the sweep enqueues
        what is missing.
        """
        if time.monotonic() < self._rests_until:
            raise QueueUnreachable("the broker did not accept a message a moment ago")
        queue = queue_of(worker_kind)
        with publication(job_id, queue=queue):
            try:
                self._app.send_task(
                    RUN_JOB_TASK,
                    args=[job_id],
                    queue=queue,
                    headers=message_headers(),
                    ignore_result=True,
                    retry=False,
                )
            except (KombuError, OSError) as error:
                self._rests_until = time.monotonic() + _REST_SECONDS
                raise _unreachable(error) from error

    def ping(self) -> None:
        """Check that the broker answers and takes messages. Raises `QueueUnreachable`."""
        connection = self._app.connection_for_write()
        try:
            with connection:
                channel = connection.default_channel  # opens a connection and a channel, which sends a ping
                folder = self._app.conf[_TRANSPORT_KEY].get("data_folder_out")
                if folder is not None:
                    with tempfile.TemporaryFile(dir=folder):
                        pass
                elif connection.transport.driver_type == "redis":
                    # refused by a replica and by a full server, as a message is; no message is empty: nothing changes
                    channel.client.linsert(QUEUE, "before", "", "")
        except (KombuError, OSError, *connection.channel_errors) as error:
            raise _unreachable(error) from error

    def close(self) -> None:
        """Close all pooled connections."""
        self._app.close()


def _unreachable(error: BaseException) -> QueueUnreachable:
    # only the type of the error: its text may contain the broker's address with a password
    return QueueUnreachable(f"the broker does not accept messages ({type(error.__cause__ or error).__name__})")


def _with_short_timeouts(config: Mapping[str, object]) -> dict[str, object]:
    """A worker may wait for its broker; an HTTP request must not."""
    options = config.get(_TRANSPORT_KEY)
    transport = dict(options) if isinstance(options, Mapping) else {}
    transport |= {"max_retries": 0, "retry_on_timeout": False}
    transport |= {"socket_timeout": _TIMEOUT_SECONDS, "socket_connect_timeout": _TIMEOUT_SECONDS}
    return {**config, _TRANSPORT_KEY: transport, "broker_connection_timeout": _TIMEOUT_SECONDS}
