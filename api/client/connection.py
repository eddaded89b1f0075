"""HTTP requests whose responses are validated: one connection pool to one service."""

from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2
from pydantic import TypeAdapter, ValidationError

from api.client.errors import NotTheService, Refused, ServiceUnreachable, error_of
from api.client.key import find_key
from api.client.models import Problem

T = TypeVar("T")
QueryParameters = list[tuple[str, str | int | float | bool | None]]


class Connection:
    """`timeout` in seconds, for each request. Raises `ServiceUnreachable` if `url` is not an address.

    `api_key` is by default that of the environment or of `DATA/api-key`; raises `ValueError` as `find_key` does.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        api_key: str | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        try:
            # a proxy from the environment must not receive requests to a service on this machine
            local = urlsplit(self.url).hostname in ("127.0.0.1", "::1", "localhost")
            self._http = httpx2.Client(base_url=self.url, timeout=timeout, transport=transport, trust_env=not local)
        except (httpx2.InvalidURL, ValueError) as error:
            raise ServiceUnreachable(f"{url!r} is not an address: {error}") from error
        self._key = find_key(api_key, is_local=local)

    def close(self) -> None:
        self._http.close()

    def request(
        self,
        shape: type[T],
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        query: QueryParameters | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """The body of the response as a `shape`. Raises `ServiceError`."""
        response = self._send(method, path, body=body, query=query, headers=headers)
        try:
            return TypeAdapter(shape).validate_json(response.content)
        except ValidationError as error:
            raise NotTheService(
                f"the response of {self.url} to {method} {response.request.url.path} is not one of this service: "
                f"{error.errors()[0]['msg']}"
            ) from error

    def request_nothing(self, method: str, path: str) -> None:
        """A request whose response has no body. Raises `ServiceError`."""
        self._send(method, path)

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        query: QueryParameters | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """A response that is a success. A key that was found, not given, is dropped where it is refused."""
        try:
            response = self._http.request(method, path, json=body, params=query, headers=self._with_key(headers))
            if response.status_code == httpx2.codes.UNAUTHORIZED and self._key is not None and self._key.is_guess:
                self._key = None  # that of another service; this one may need none
                response = self._http.request(method, path, json=body, params=query, headers=headers)
        except httpx2.TimeoutException as error:
            raise ServiceUnreachable(f"the service at {self.url} did not respond in time") from error
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise ServiceUnreachable(f"no service responds at {self.url}: {error}") from error
        if not response.is_success:
            raise _refusal(response)
        return response

    def _with_key(self, headers: Mapping[str, str] | None) -> Mapping[str, str]:
        key = {} if self._key is None else {"Authorization": f"Bearer {self._key.text}"}
        return {**(headers or {}), **key}


def _refusal(response: httpx2.Response) -> Refused:
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        problem = Problem(title=f"HTTP {response.status_code} {response.reason_phrase}".strip())
    return error_of(problem.model_copy(update={"status": response.status_code}))
