"""One connection pool to one service: which key is sent, how responses are read, which requests are repeated.

A request that was refused for its rate has done nothing, so it is repeated when the service says. One that got no
response or a 5xx may have done its work, so it is repeated only if that makes no difference.
"""

import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypedDict, TypeVar, Unpack
from urllib.parse import quote, urlsplit

import httpx2
from dotenv import dotenv_values
from pydantic import TypeAdapter, ValidationError

from api.client.errors import (
    BY_STATUS,
    InvalidAddress,
    NotTheService,
    Refused,
    ServiceError,
    ServiceUnreachable,
    TooMany,
)
from api.client.models import Problem
from replaceme_core.shapes import Page

PAUSES_SECONDS = (0.5, 1.0, 2.0)
"""Before each repetition of a request; longer where the service asks for that."""
LONGEST_PAUSE_SECONDS = 60.0
"""A service that asks for more gets no repetition: the caller decides."""
DOWN_SECONDS = 30.0
"""How long reads that follow a job tolerate a service that is down."""
LEAST_SECONDS = 5.0
"""What a request gets whose caller has less time left than this: one answer is worth waiting for."""
POLL_SECONDS = 0.5
NOTICED_SECONDS = 5.0
"""A pause that a person would take for a program that hangs is logged."""
KEY_VARIABLE: Final = "REPLACEME_API_KEY"
KEY_FILE: Final = "api-key"
_SECONDS = re.compile("[0-9]{1,9}")
logger = logging.getLogger(__name__)
_HEADER_TEXT = re.compile("[!-~]+")  # visible ASCII
_TOO_MANY_JOBS = "too_many_jobs"

T = TypeVar("T")
Query = Sequence[tuple[str, str | int | None]]


class Parts(TypedDict, total=False):
    """What a request has beside its method and path. Parameters of the query that are `None` are left out.

    `is_repeatable`: a second request does nothing that the first has not done; by default all but `POST`. `seconds`:
    a shorter time than that of the connection. `deletes`: a repetition that finds nothing is a success, since the
    request before may have done it; `may_be_gone`: this is such a repetition.
    """

    body: Mapping[str, object] | None
    query: Query
    headers: Mapping[str, str]
    is_repeatable: bool
    seconds: float
    deletes: bool
    may_be_gone: bool


class Connection:
    """`timeout` in seconds, for each request.

    Raises `InvalidAddress` if `url` is not an address, and `ValueError` for a key that cannot be sent.
    """

    def __init__(
        self, url: str, *, timeout: float, api_key: str | None = None, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self._timeout = timeout
        self.url = re.sub("//.*@", "//", url.rstrip("/"))  # in errors, which a password is not
        try:
            is_local = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
            # a proxy from the environment must not receive requests to a service on this machine
            self._make = partial(
                httpx2.Client, base_url=url.rstrip("/"), timeout=timeout, transport=transport, trust_env=not is_local
            )
            self._http, self._process = self._make(), os.getpid()
        except (httpx2.InvalidURL, ValueError) as error:
            reason = f": {error}" if self.url == url.rstrip("/") else ""  # else it may name a part of the password
            raise InvalidAddress(f"{self.url!r} is not an address{reason}") from error
        self._key, self._is_guess = find_key(api_key, is_local=is_local)

    def close(self) -> None:
        self._http.close()

    def ask(self, shape: type[T], method: str, path: str, **parts: Unpack[Parts]) -> T:
        """The body of the response. Raises `ServiceError`."""
        return self.read(shape, self.send(method, path, **parts))

    def items(self, shape: type[Page[T]], path: str, *, query: Query = (), cursor_name: str) -> Iterator[T]:
        """The items of all pages of a list; `cursor_name` is the parameter that asks for the next page."""
        cursor: str | None = None
        while True:
            page = self.ask(shape, "GET", path, query=[*query, (cursor_name, cursor)])
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def send(self, method: str, path: str, **parts: Unpack[Parts]) -> httpx2.Response:
        """The response, which is a success, at once or to a repetition. Raises `ServiceError`."""
        is_repeatable = parts.get("is_repeatable", method != "POST")
        for pause in PAUSES_SECONDS:
            try:
                return self.send_once(method, path, **parts)
            except ServiceError as error:
                seconds = _pause_before_repetition(error, least=pause, is_repeatable=is_repeatable)
                if seconds is None:
                    raise
                rest(seconds, error)
                if parts.get("deletes") and not isinstance(error, TooMany):
                    parts["may_be_gone"] = True
        return self.send_once(method, path, **parts)

    def send_while_down(self, path: str, *, until: float = math.inf, **parts: Unpack[Parts]) -> httpx2.Response:
        """The response to a read, which is repeated while the service is down, not past `until` (monotonic)."""
        began = time.monotonic()
        while True:
            try:
                parts["seconds"] = max(LEAST_SECONDS, until - time.monotonic())
                return self.send_once("GET", path, **parts)
            except ServiceError as error:
                rest(pause_while_down(error, down_since=began, until=until), error)

    def send_once(self, method: str, path: str, **parts: Unpack[Parts]) -> httpx2.Response:
        with self.opened(method, path, **parts) as response:
            response.read()
            return response

    @contextmanager
    def opened(self, method: str, path: str, **parts: Unpack[Parts]) -> Iterator[httpx2.Response]:
        """A response that is a success, or says that nothing has changed (304); its body is still to be read.

        Raises `ServiceError`, also for what goes wrong while the body is read.
        """
        try:
            response = self._sent(method, path, **parts)
            try:
                if response.status_code == httpx2.codes.UNAUTHORIZED and self._is_guess:
                    self._key, self._is_guess = None, False  # it belongs to another service
                    response.close()
                    response = self._sent(method, path, **parts)
                is_gone = parts.get("may_be_gone") and response.status_code == httpx2.codes.NOT_FOUND
                if not (response.is_success or is_gone or response.status_code == httpx2.codes.NOT_MODIFIED):
                    response.read()
                    raise _refusal(response)
                yield response
            finally:
                response.close()
        except (httpx2.SSEError, httpx2.DecodingError) as error:  # a page of HTML in place of a stream, for one
            raise NotTheService(f"the response of {self.url} is not one of this service: {error}") from error
        except httpx2.TimeoutException as error:
            raise ServiceUnreachable(f"the service at {self.url} did not respond in time") from error
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise InvalidAddress(f"{self.url!r} is not an address: {error}") from error
        except (httpx2.TransportError, httpx2.StreamError) as error:
            raise ServiceUnreachable(f"no service responds at {self.url}: {error}") from error

    def _sent(self, method: str, path: str, **parts: Unpack[Parts]) -> httpx2.Response:
        key = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        if self._process != os.getpid():  # forked: on connections of its parent it would read answers to others
            self._http, self._process = self._make(), os.getpid()
        request = self._http.build_request(
            method,
            path,
            json=parts.get("body"),
            params=[(name, value) for name, value in parts.get("query", ()) if value is not None] or None,
            headers={**parts.get("headers", {}), **key},
            timeout=min(self._timeout, parts.get("seconds", math.inf)),
        )
        return self._http.send(request, stream=True)

    def read(self, shape: type[T], response: httpx2.Response) -> T:
        """The body of a success. Raises `NotTheService`."""
        try:
            return TypeAdapter(shape).validate_json(response.content)
        except ValidationError as error:
            request = response.request
            raise NotTheService(
                f"the response of {self.url} to {request.method} {request.url.path} is not one of this service: "
                f"{error.errors()[0]['msg']}"
            ) from error


def path_of(*parts: str) -> str:
    """
    >>> path_of("jobs", "a/b", "events")
    '/jobs/a%2Fb/events'
    >>> path_of("jobs", "..")  # a part of the path, not a way up
    '/jobs/%2E%2E'
    """
    return "".join(f"/{quote(part, safe='').replace('.', '%2E')}" for part in parts)


def given(**fields: object) -> dict[str, object]:
    """The fields that are not `None`."""
    return {name: value for name, value in fields.items() if value is not None}


def retry_after(response: httpx2.Response) -> float | None:
    """Whole seconds, as the service sends them; `None` for anything else."""
    text = response.headers.get("retry-after", "")
    return float(text) if _SECONDS.fullmatch(text) else None


def rest(seconds: float, error: ServiceError) -> None:
    """Wait before another try, for the reason in `error`."""
    if seconds >= NOTICED_SECONDS:
        logger.warning("trying again in %.0f s: %s", seconds, error)
    time.sleep(seconds)


def pause_while_down(error: ServiceError, *, down_since: float, until: float = math.inf) -> float:
    """Seconds until the next try of a read. Raises `error` if another does not help, or would be too late.

    `down_since` and `until` are times of the monotonic clock.
    """
    give_up_at = min(down_since + DOWN_SECONDS, max(until, down_since))
    seconds, left = max(POLL_SECONDS, error.retry_after or 0.0), give_up_at - time.monotonic()
    if not error.is_transient or left <= 0 or seconds > LONGEST_PAUSE_SECONDS:
        raise error
    return min(seconds, left)


def _pause_before_repetition(error: ServiceError, *, least: float, is_repeatable: bool) -> float | None:
    """Seconds until a request is sent again; `None`: it is not."""
    if isinstance(error, TooMany):  # it has done nothing
        is_repeated = error.problem.code != _TOO_MANY_JOBS and error.retry_after is not None
    else:
        is_repeated = is_repeatable and error.is_transient
    seconds = max(least, error.retry_after or 0.0)
    return seconds if is_repeated and seconds <= LONGEST_PAUSE_SECONDS else None


def _refusal(response: httpx2.Response) -> Refused:
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        problem = Problem(title=f"HTTP {response.status_code} {response.reason_phrase}".strip())
    problem = problem.model_copy(update={"status": response.status_code})
    return BY_STATUS.get(response.status_code, Refused)(problem, retry_after=retry_after(response))


def find_key(given: str | None, *, is_local: bool) -> tuple[str | None, bool]:
    """The key for a service: the given one, that of the environment or of `.env`, or the one that a service here made.

    The last is a guess, which is said beside it: the service at hand may be another. `is_local`: the service is on this
    machine; the key of `DATA/api-key` is sent to no other. Raises `ValueError` for a key that cannot be in a header;
    the message does not contain it.
    """
    environ = {**dotenv_values(".env"), **os.environ}
    named = given or environ.get(KEY_VARIABLE)
    if named:
        if _HEADER_TEXT.fullmatch(named.strip()) is None:
            raise ValueError("the API key has characters that no key has")
        return named.strip(), False
    if not is_local:
        return None, False
    data = Path(environ.get("REPLACEME_DATA") or "data").expanduser()
    try:
        text = (data / KEY_FILE).read_text("ascii").strip()
    except (OSError, ValueError):  # there is none, or it belongs to somebody else
        return None, False
    return (text, True) if _HEADER_TEXT.fullmatch(text) else (None, False)
