"""Requests to httpx2's form and responses back to ours; what the service refuses becomes an error. No I/O."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from pydantic import TypeAdapter, ValidationError

from api.client.errors import InvalidAddress, NotTheService, Refused, ServiceUnreachable, error_of
from api.client.key import find_key
from api.client.models import Problem
from api.client.requests.request import Answer, Request

T = TypeVar("T")


class Exchange:
    """One service: its address and the key that it is sent. Raises `ValueError` as `find_key` does.

    `api_key` is by default that of the environment or of `DATA/api-key`.
    """

    def __init__(self, url: str, *, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        with self.errors_of_address():
            # a proxy from the environment must not receive requests to a service on this machine
            self.is_local = urlsplit(self.url).hostname in ("127.0.0.1", "::1", "localhost")
        self._key = find_key(api_key, is_local=self.is_local)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of httpx2 as `ServiceUnreachable` or `InvalidAddress`."""
        try:
            yield
        except httpx2.TimeoutException as error:
            raise ServiceUnreachable(f"the service at {self.url} did not respond in time") from error
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise InvalidAddress(f"{self.url!r} is not an address: {error}") from error
        except (httpx2.TransportError, httpx2.StreamError) as error:
            raise ServiceUnreachable(f"no service responds at {self.url}: {error}") from error

    @contextmanager
    def errors_of_address(self) -> Iterator[None]:
        """What is raised about an address that is none, as `InvalidAddress`."""
        try:
            yield
        except (httpx2.InvalidURL, ValueError) as error:
            raise InvalidAddress(f"{self.url!r} is not an address: {error}") from error

    def arguments(self, request: Request[Any]) -> dict[str, Any]:
        """The arguments of `build_request`."""
        key = {} if self._key is None else {"Authorization": f"Bearer {self._key.text}"}
        return {
            "method": request.method,
            "url": request.path,
            "json": request.body,
            "params": list(request.query) or None,
            "headers": {**request.headers, **key},
        }

    def forgets_key(self, response: httpx2.Response) -> bool:
        """Whether to send the request again: the key was found, not given, and belongs to another service."""
        if response.status_code == httpx2.codes.UNAUTHORIZED and self._key is not None and self._key.is_guess:
            self._key = None
            return True
        return False

    def answer(self, request: Request[T], response: httpx2.Response) -> Answer[T]:
        """The answer in a response that has been read. Raises `ServiceError`."""
        tag, seconds = response.headers.get("etag", ""), retry_after(response)
        if response.status_code == httpx2.codes.NOT_MODIFIED:
            return Answer(value=None, tag=tag, retry_after=seconds)
        if not response.is_success:
            raise _refusal(response)
        if request.shape is None:
            return Answer(value=None, tag=tag, retry_after=seconds)
        try:
            value = TypeAdapter(request.shape).validate_json(response.content)
            return Answer(value=value, tag=tag, retry_after=seconds)
        except ValidationError as error:
            raise NotTheService(
                f"the response of {self.url} to {request.method} {request.path} is not one of this service: "
                f"{error.errors()[0]['msg']}"
            ) from error


def retry_after(response: httpx2.Response) -> float | None:
    """Seconds, from a number or a date; `None` if there is none that can be read."""
    text = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _refusal(response: httpx2.Response) -> Refused:
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        problem = Problem(title=f"HTTP {response.status_code} {response.reason_phrase}".strip())
    return error_of(problem.model_copy(update={"status": response.status_code}), retry_after=retry_after(response))
