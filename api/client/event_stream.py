"""Server-sent events: from bytes to events, and behind the last one again where the connection is lost."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
from pydantic import ValidationError

from api.client.connection import POLL_SECONDS, Connection, path_of, pause_while_down
from api.client.errors import NotTheService, ServiceError
from api.client.models import TERMINAL, JobEvent


def follow_events(connection: Connection, job_id: str | None, *, after: int | None) -> Iterator[JobEvent]:
    """Events as they happen, each once and in order: those of a job until it ends, or those of all jobs."""
    path = "/events" if job_id is None else path_of("jobs", job_id, "events")
    last, seen_at = "" if after is None else str(after), time.monotonic()
    while True:
        parser = EventParser()
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        try:
            with connection.opened("GET", path, headers=headers) as response:
                if response.status_code == httpx2.codes.NO_CONTENT:
                    return  # the job has ended, and there is nothing behind the last event
                seen_at = time.monotonic()
                for chunk in response.iter_bytes():
                    seen_at = time.monotonic()
                    for message in parser.feed(chunk):
                        event = _event(message.data)
                        last = message.id
                        yield event
                        if job_id is not None and event.type in TERMINAL:
                            return
            pause = POLL_SECONDS
        except ServiceError as error:
            pause = pause_while_down(error, down_since=seen_at)
        time.sleep(max(pause, parser.retry_seconds or 0.0))


def _event(data: str) -> JobEvent:
    try:
        return JobEvent.model_validate_json(data)
    except ValidationError as error:
        raise NotTheService(f"an event is not one of this service: {error.errors()[0]['msg']}") from error


@dataclass(frozen=True, kw_only=True)
class Message:
    """One event: `id` is what to resume behind, `data` the body."""

    id: str
    data: str


class EventParser:
    """Reads the form that https://html.spec.whatwg.org/multipage/server-sent-events.html describes.

    Lines end with CR, LF or both, and with nothing else: text may contain other separators of lines.

    >>> parser = EventParser()
    >>> parser.feed(b"retry: 2000\\nid: 3\\nda"), parser.feed(b'ta: {}\\n\\n'), parser.retry_seconds
    ([], [Message(id='3', data='{}')], 2.0)
    """

    def __init__(self) -> None:
        self.retry_seconds: float | None = None
        self._rest = b""
        self._id = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that are complete with this chunk."""
        text = self._rest + chunk
        held = b"\r" if text.endswith(b"\r") else b""  # its line feed may be in the next chunk
        text = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + held
        return [message for line in lines if (message := self._line(line.decode("utf-8", "replace"))) is not None]

    def _line(self, line: str) -> Message | None:
        if not line:
            data, self._data = self._data, []
            return Message(id=self._id, data="\n".join(data)) if data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "id" if "\0" not in value:
                self._id = value
            case "data":
                self._data.append(value)
            case "retry" if value.isascii() and value.isdigit():
                self.retry_seconds = int(value) / 1000
        return None
