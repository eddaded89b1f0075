"""Where work comes from: the request that made a job, by its id and its place in a trace.

The origin belongs to a request, and to each attempt at a job that the request has made. Logs and spans name it. It is
kept in a context variable, so that no function has to pass it on.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

from structlog.contextvars import bound_contextvars

LONGEST_ID = 64
_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_ID - 1}}}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.{0,200})?")
_ID_HEADER, _TRACE_HEADER = "request_id", "traceparent"
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


@dataclass(frozen=True, kw_only=True)
class Origin:
    """`request_id` is at most 64 plain characters; `traceparent` is as W3C Trace Context, version 00, has it."""

    request_id: str | None = None
    traceparent: str | None = None

    @property
    def trace_id(self) -> str | None:
        """The 32 hex digits that all spans of a trace share."""
        return None if self.traceparent is None else self.traceparent[3:35]


UNKNOWN = Origin()
_origin: ContextVar[Origin] = ContextVar("origin", default=UNKNOWN)


def origin() -> Origin:
    """The origin of what is being done."""
    return _origin.get()


@contextmanager
def bound(found: Origin, **more: object) -> Iterator[None]:
    """Within the context, `origin` returns `found`, and each line of the log has its ids and `more`."""
    names = {"request_id": found.request_id, "trace_id": found.trace_id, **more}
    token = _origin.set(found)
    try:
        with bound_contextvars(**{name: value for name, value in names.items() if value is not None}):
            yield
    finally:
        _origin.reset(token)


def in_context(work: Callable[[], None]) -> Callable[[], None]:
    """`work` for another thread, with the origin and the bound names of this one. For one thread only."""
    return partial(copy_context().run, work)


def message_headers() -> dict[str, str]:
    """Headers of a message about what is being done."""
    found = {_ID_HEADER: origin().request_id, _TRACE_HEADER: origin().traceparent}
    return {name: value for name, value in found.items() if value is not None}


def from_message(headers: Mapping[str, object] | None) -> Origin:
    """The origin in the headers of a message; what is not valid is left out."""
    given = headers or {}
    return Origin(
        request_id=parse_request_id(given.get(_ID_HEADER)), traceparent=parse_traceparent(given.get(_TRACE_HEADER))
    )


def new_request_id() -> str:
    return uuid4().hex


def parse_request_id(text: object) -> str | None:
    """The id, or `None` if it is too long or has other characters than letters, digits, `.`, `_` and `-`.

    >>> parse_request_id("build-17.a"), parse_request_id("two words"), parse_request_id(None)
    ('build-17.a', None, None)
    """
    return text if isinstance(text, str) and _ID.fullmatch(text) else None


def parse_traceparent(text: object) -> str | None:
    """The header as version 00 has it, whichever version it came in; `None` if it is not valid.

    >>> parse_traceparent("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later")
    '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
    >>> parse_traceparent("00-00000000000000000000000000000000-00f067aa0ba902b7-01")
    """
    found = _TRACEPARENT.fullmatch(text) if isinstance(text, str) else None
    if found is None or found[1] == _NO_TRACE or found[2] == _NO_SPAN:
        return None
    if found[4] is not None and found[0].startswith("00"):
        return None
    return f"00-{found[1]}-{found[2]}-{found[3]}"
