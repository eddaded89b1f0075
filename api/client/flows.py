"""What the clients do, as generators that ask for each request and each pause, and do no I/O themselves.

A connection carries them out: `Connection` waits, `AsyncConnection` awaits. So both retry, poll and resume alike.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from api.client.errors import InvalidAddress, NotTheService, ServiceBroken, ServiceError, ServiceUnreachable, TooMany
from api.client.event_stream import EventParser
from api.client.models import TERMINAL, CancelledJob, Job, JobEvent, LogLine, Page
from api.client.requests import jobs as requests
from api.client.requests.request import Answer, Request

PAUSES_SECONDS = (0.5, 1.0, 2.0)
"""Before each repetition of a request; longer where the service asks for that."""
LONGEST_PAUSE_SECONDS = 60.0
"""A service that asks for more gets no repetition: the caller decides."""
DOWN_SECONDS = 30.0
"""How long `watch`, `wait` and `stream` tolerate a service that is down."""
POLL_SECONDS = 0.5
_TOO_MANY_JOBS = "too_many_jobs"

T = TypeVar("T")


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Open:
    """Send a request whose response is read chunk by chunk. Gives whether it has a body."""

    request: Request[None]


class ReadChunk:
    """The next bytes of the response that was opened; `None` at its end."""


class Close:
    """Close the response that was opened."""


@dataclass(frozen=True)
class Emit(Generic[T]):
    """An item for the caller."""

    value: T


Effect = Request[Any] | Pause | Open | ReadChunk | Close
Flow = Generator[Effect, Any, T]
Stream = Generator[Effect | Emit[T], Any, None]


class Run(Generic[T]):
    """A flow that is being carried out. `effect` is what to do next, `None` at its end; then `value` is its result."""

    def __init__(self, flow: Generator[Effect | Emit[Any], Any, T]) -> None:
        self._flow = flow
        self.value: T
        self.effect: Effect | Emit[Any] | None = self._step(partial(next, flow))

    def answer(self, result: object) -> None:
        self.effect = self._step(partial(self._flow.send, result))

    def fail(self, error: ServiceError) -> None:
        self.effect = self._step(partial(self._flow.throw, error))

    def close(self) -> None:
        self._flow.close()

    def _step(self, step: Callable[[], Effect | Emit[Any]]) -> Effect | Emit[Any] | None:
        try:
            return step()
        except StopIteration as end:
            self.value = end.value
            return None


def send(request: Request[T]) -> Flow[T]:
    """The value of the answer. Repeats the request where that is safe: see `pause_before`."""
    for pause in (*PAUSES_SECONDS, None):
        try:
            answer: Answer[T] = yield request
        except ServiceError as error:
            seconds = pause_before(request, error, least=pause)
            if seconds is None:
                raise
            yield Pause(seconds)
        else:
            return answer.value  # type: ignore[return-value]  # `None` for a request without a shape
    raise AssertionError("the last try raises or returns")


def pause_before(request: Request[Any], error: ServiceError, *, least: float | None) -> float | None:
    """Seconds until a request is sent again; `None`: it is not.

    A request that was refused for its rate has done nothing, so it is repeated when the service says. One that got no
    response or a 5xx may have done its work, so it is repeated only if that makes no difference.
    """
    if least is None or isinstance(error, InvalidAddress):
        return None
    asked = error.retry_after if isinstance(error, TooMany | ServiceBroken) else None
    if isinstance(error, TooMany):
        if error.problem.code == _TOO_MANY_JOBS or asked is None:
            return None
    elif not isinstance(error, ServiceUnreachable | ServiceBroken) or not request.is_repeatable:
        return None
    seconds = max(least, asked or 0.0)
    return seconds if seconds <= LONGEST_PAUSE_SECONDS else None


def pages(page_after: Callable[[str | None], Request[Page[T]]]) -> Stream[T]:
    """The items of all pages; `page_after` makes the request for the page behind a cursor."""
    cursor: str | None = None
    while True:
        page = yield from send(page_after(cursor))
        for item in page.items:
            yield Emit(item)
        cursor = page.next_cursor
        if cursor is None:
            return


def cancel_matching(filters: Any) -> Flow[tuple[CancelledJob, ...]]:
    found: list[CancelledJob] = []
    while True:
        answer = yield from send(requests.cancel_matching(filters))
        found += answer.items
        if not answer.more:
            return tuple(found)


def watch(job_id: str, *, timeout: float | None) -> Stream[Job]:
    """The job whenever it has changed, until it has ended. Asks as often as the service wants to be asked."""
    until = None if timeout is None else time.monotonic() + timeout
    tag, status = "", "unknown"
    while True:
        answer = yield from _while_down(requests.job(job_id, tag=tag), until=until)
        if answer.value is not None:
            tag, status = answer.tag, answer.value.status
            yield Emit(answer.value)
            if answer.value.is_terminal:
                return
        pause = POLL_SECONDS if answer.retry_after is None else answer.retry_after
        if until is not None:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"job {job_id} is still {status} after {timeout:g} s")
            pause = min(pause, left)
        yield Pause(pause)


def stream(job_id: str | None, *, after: int | None) -> Stream[JobEvent]:
    """Events as they happen; resumes behind the last one where the connection is lost. That of a job ends with it."""
    last, give_up_at = "" if after is None else str(after), time.monotonic() + DOWN_SECONDS
    while True:
        parser = EventParser()
        try:
            if not (yield Open(requests.stream(job_id, last=last))):
                return  # the job has ended, and there is nothing behind the last event
            give_up_at = time.monotonic() + DOWN_SECONDS
            while (chunk := (yield ReadChunk())) is not None:
                give_up_at = time.monotonic() + DOWN_SECONDS
                for message in parser.feed(chunk):
                    event = _event(message.data)
                    last = message.id
                    yield Emit(event)
                    if job_id is not None and event.type in TERMINAL:
                        yield Close()
                        return
            pause = POLL_SECONDS
        except (ServiceUnreachable, ServiceBroken, TooMany) as error:
            pause = _pause_while_down(error, give_up_at=give_up_at)
        yield Close()
        yield Pause(max(pause, parser.retry_seconds or 0.0))


def _event(data: str) -> JobEvent:
    try:
        return JobEvent.model_validate_json(data)
    except ValidationError as error:
        raise NotTheService(f"an event is not one of this service: {error.errors()[0]['msg']}") from error


def follow_log(job_id: str) -> Stream[LogLine]:
    """The lines of the log as they come, until the job has ended."""
    after = 0
    while True:
        answer = yield from _while_down(requests.job(job_id))  # before the lines, so that the last ones are not missed
        page = yield from send(requests.log(job_id, after=after))
        for line in page.items:
            after = line.number
            yield Emit(line)
        if page.next_cursor is not None:
            continue
        if answer.value is not None and answer.value.is_terminal:
            return
        yield Pause(POLL_SECONDS if answer.retry_after is None else answer.retry_after)


def _while_down(request: Request[T], *, until: float | None = None) -> Flow[Answer[T]]:
    """The answer; repeats the read while the service is down, at most `DOWN_SECONDS` and not past `until`."""
    give_up_at = time.monotonic() + DOWN_SECONDS
    if until is not None:
        give_up_at = min(give_up_at, max(until, time.monotonic()))
    while True:
        try:
            answer: Answer[T] = yield request
        except (ServiceUnreachable, ServiceBroken, TooMany) as error:
            yield Pause(_pause_while_down(error, give_up_at=give_up_at))
        else:
            return answer


def _pause_while_down(error: ServiceUnreachable | ServiceBroken | TooMany, *, give_up_at: float) -> float:
    """Seconds until the next try. Raises `error` if that would be too late."""
    asked = None if isinstance(error, ServiceUnreachable) else error.retry_after
    seconds, left = max(POLL_SECONDS, asked or 0.0), give_up_at - time.monotonic()
    if left <= 0 or isinstance(error, InvalidAddress) or seconds > LONGEST_PAUSE_SECONDS:
        raise error
    return min(seconds, left)
