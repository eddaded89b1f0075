"""How a worker is woken up: Celery's settings, the same for the API and the workers, and the transport through files.

A message only wakes a worker up and carries a job's id. It may be lost, doubled or late without harm, because the
database decides what is done. Hence early acknowledgement, as Celery does by itself, and no result backend. Imports no
Celery.

Kombu's own transport through files creates a message under its final name and writes it afterwards. A worker that reads
it in between receives an empty message and stops with a JSON error; a process that is killed in between leaves an
unreadable table of queues. The one here writes both atomically.
"""

import time
import uuid
from pathlib import Path

from kombu.exceptions import ChannelError
from kombu.transport import filesystem, virtual
from kombu.utils.json import dumps

from replaceme_core.hardware import WorkerKind
from replaceme_core.hub.files import locked
from replaceme_core.settings import Settings

_TABLES_LOCK = "tables.lock"
POLL_SECONDS = 0.2
"""Between two checks of the directory of messages."""


class Channel(filesystem.Channel):
    def __init__(self, connection: virtual.Transport, **options: object) -> None:
        """Create the directories that the transport's options name."""
        super().__init__(connection, **options)  # type: ignore[no-untyped-call]
        for folder in (self.data_folder_in, self.data_folder_out, self.control_folder):
            Path(folder).mkdir(parents=True, exist_ok=True)

    def _put(self, queue: str, payload: object, **_: object) -> None:  # type: ignore[override]  # bases disagree
        """Write a draft, then rename it into the queue. Names sort by age, as those of Kombu's transport do."""
        folder = Path(self.data_folder_out)
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}"
        draft = folder / f"{name}.draft"
        try:
            draft.write_text(dumps(payload))  # type: ignore[no-untyped-call]
            draft.rename(folder / f"{name}.{queue}.msg")
        except OSError as error:
            raise ChannelError(f"cannot add a message to {folder}: {error}") from error
        finally:
            draft.unlink(missing_ok=True)

    def get_table(self, exchange: str) -> object:
        with locked(Path(self.control_folder) / _TABLES_LOCK):
            return super().get_table(exchange)  # type: ignore[no-untyped-call]

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        with locked(Path(self.control_folder) / _TABLES_LOCK):
            table = Path(self._exchange_file(exchange))  # type: ignore[no-untyped-call]
            if table.exists() and not table.stat().st_size:  # its writer was killed between creating and writing it
                table.unlink()
            super()._queue_bind(exchange, routing_key, pattern, queue)  # type: ignore[no-untyped-call]


class Transport(filesystem.Transport):
    Channel = Channel

    def drain_events(self, connection: object, timeout: float | None = None) -> None:  # type: ignore[override]
        """Wait for a message, as long as this takes or `timeout` in seconds allows, but no longer than `POLL_SECONDS`.

        Celery waits two seconds at a time, and checks only in between whether a signal asks it to stop.
        """
        shorter = None if timeout is None else min(timeout, POLL_SECONDS)
        super().drain_events(connection, timeout=shorter)  # type: ignore[no-untyped-call]


QUEUE = "replaceme"
"""The queue of jobs for any worker; every worker consumes from it. The other queues are named after worker kinds."""
QUEUES = (QUEUE, *(worker_kind.value for worker_kind in WorkerKind))
FILESYSTEM_TRANSPORT = "replaceme_core.broker:Transport"
FILES, REDIS = ("filesystem",), ("redis", "unix", "sentinel")
"""How addresses of the two kinds of brokers begin."""
_CONNECT_SECONDS = 3
_ANSWER_SECONDS = 30


def queue_of(worker_kind: WorkerKind | None) -> str:
    """The queue for jobs of that kind; `None`: for any worker."""
    return QUEUE if worker_kind is None else worker_kind.value


# a client waits for this; then the sweep sends the message
_TWO_TRIES = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0, "interval_max": 0.1}
_COMMON: dict[str, object] = {
    "accept_content": ["json"],  # its default, which decides that no message runs code
    "task_default_queue": QUEUE,
    "task_queues": {name: {"exchange": name, "routing_key": name} for name in QUEUES},
    "task_ignore_result": True,
    "task_publish_retry_policy": _TWO_TRIES,
    # a job uses all cores of its machine; more than one at a time is the operator's choice (celery worker -c)
    "worker_concurrency": 1,
    "worker_prefetch_multiplier": 1,
    "worker_cancel_long_running_tasks_on_connection_loss": False,  # the default of Celery 6 is another one
    "broker_connection_timeout": _CONNECT_SECONDS,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # else a worker ends with what a Redis answers that a failover has made a replica: UNBLOCKED, READONLY
    "broker_channel_error_retry": True,
}


def broker_config(settings: Settings) -> dict[str, object]:
    """Celery's settings for the broker that `settings` name."""
    url = settings.resolved_broker_url
    config = {**_COMMON, "broker_url": url}
    if url.startswith(FILES):
        messages, control = settings.broker_directory / "messages", settings.broker_directory / "control"
        return config | {
            "broker_transport": FILESYSTEM_TRANSPORT,
            "broker_transport_options": {
                "data_folder_in": str(messages),
                "data_folder_out": str(messages),
                "control_folder": str(control),
                "polling_interval": POLL_SECONDS,
            },
            "worker_timer_precision": POLL_SECONDS,  # as often its thread checks whether to stop
            # commands to workers are files, which would stay forever if a worker has ended
            "worker_enable_remote_control": False,
        }
    if url.startswith(REDIS):
        return config | {
            # fetch a message only with a free slot, so that none waits at a busy worker
            "worker_disable_prefetch": True,
            "broker_transport_options": {
                "visibility_timeout": 3600,  # seconds; applies only between delivery and start
                "socket_connect_timeout": _CONNECT_SECONDS,
                "socket_timeout": _ANSWER_SECONDS,
                "socket_keepalive": True,
                **_TWO_TRIES,
            },
        }
    return config
