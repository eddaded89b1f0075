"""Celery's filesystem transport, with messages and tables that are written atomically.

Kombu's own transport creates a message under its final name and writes it afterwards. A worker that reads it in between
receives an empty message and stops with a JSON error; a process that is killed in between leaves an unreadable table of
queues. `celery_config.py` names this class by its path, so that the API and the workers use it.
"""

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kombu.exceptions import ChannelError
from kombu.transport import filesystem, virtual
from kombu.utils.json import dumps

_TABLES_LOCK = "tables.lock"


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

    def get_table(self, exchange: str) -> object:
        with self._tables():
            return super().get_table(exchange)  # type: ignore[no-untyped-call]

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        with self._tables():
            table = Path(self._exchange_file(exchange))  # type: ignore[no-untyped-call]
            if table.exists() and not table.stat().st_size:  # its writer was killed between creating and writing it
                table.unlink()
            super()._queue_bind(exchange, routing_key, pattern, queue)  # type: ignore[no-untyped-call]

    @contextmanager
    def _tables(self) -> Iterator[None]:
        descriptor = os.open(Path(self.control_folder) / _TABLES_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class Transport(filesystem.Transport):
    Channel = Channel
