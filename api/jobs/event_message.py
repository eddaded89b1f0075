"""An event as a server-sent event. Its bytes are made once for all streams that send it."""

from functools import cached_property

from api.schemas.events import EventBody, JobEventBody
from replaceme_core.jobs.records import JobEvent
from replaceme_core.jobs.watching.feed import FeedEvent

KEEP_ALIVE = b": keep-alive\n\n"
RETRY = b"retry: 2000\n\n"
"""The first message: after how many milliseconds a browser connects again."""
_LAST = ("succeeded", "failed", "cancelled")


class EventMessage:
    """An event in both streams. `position` is 0 where it was read for the stream of one job."""

    def __init__(self, found: FeedEvent) -> None:
        self.position = found.position
        self.owner = found.owner
        self.event: JobEvent = found.event

    @property
    def is_last(self) -> bool:
        """Whether it ends the job."""
        return self.event.type in _LAST

    @cached_property
    def of_job(self) -> bytes:
        """In the stream of its job; the id is the `seq`."""
        return _encoded(self.event.seq, self.event.type, EventBody.of(self.event).model_dump_json())

    @cached_property
    def of_owner(self) -> bytes:
        """In the stream of all jobs; the id is the position."""
        return _encoded(
            self.position, self.event.type, JobEventBody.placed(self.position, self.event).model_dump_json()
        )


def _encoded(number: int, kind: str, data: str) -> bytes:
    return f"id: {number}\nevent: {kind}\ndata: {data}\n\n".encode()
