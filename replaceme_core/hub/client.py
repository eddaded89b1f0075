"""The connections of the Hub's client library: how long it waits, and what it does when the Hub asks it to wait.

Importing this module sets them for the whole process; by itself the library waits forever, and sleeps where the Hub
asks for it, in which nothing can interrupt it.
"""

import time
from collections.abc import Iterator
from http import HTTPStatus

import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory, parse_ratelimit_headers
from huggingface_hub.utils.tqdm import disable_progress_bars

from replaceme_core.errors import HubUnreachable, RateLimited

TIMEOUT = httpx2.Timeout(
    connect=10, read=120, write=120, pool=None
)  # seconds without any data, not of the whole transfer
REQUEST_SECONDS = 60.0
"""Without any data, for requests about a repository."""
SLOW_SECONDS = 60.0
SLOW_BYTES = 64 * 1024
"""A reply that brings fewer bytes in `SLOW_SECONDS` is given up: a byte now and then would hold a worker for days."""
CHUNK = 1024 * 1024
"""Bytes that a download that breaks off may lose; the library's own 10 MB take minutes on a slow line."""


class _Watched(httpx2.SyncByteStream):
    """The body of a reply. Raises `HubUnreachable` where it comes too slowly; the library does not retry that."""

    def __init__(self, body: httpx2.SyncByteStream, host: str) -> None:
        self._body = body
        self._host = host

    def __iter__(self) -> Iterator[bytes]:
        began, received = time.monotonic(), 0
        for part in self._body:
            received += len(part)
            yield part
            now = time.monotonic()
            if now - began >= SLOW_SECONDS:
                if received < SLOW_BYTES:
                    raise HubUnreachable(
                        f"{self._host} sent {received:,} bytes in {now - began:.0f} s, which is too slow to go on"
                    )
                began, received = now, 0

    def close(self) -> None:
        self._body.close()


def _bound(request: httpx2.Request) -> None:
    """Set a timeout on a request that has none."""
    limits = request.extensions.get("timeout") or {}
    if all(value is None for value in limits.values()):
        request.extensions["timeout"] = TIMEOUT.as_dict()


def _watch(response: httpx2.Response) -> None:
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _Watched(response.stream, response.request.url.host)


def _refuse_limited(response: httpx2.Response) -> None:
    """Raise `RateLimited`, with the time that the Hub names. The caller waits, and may stop to."""
    if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        seconds = _seconds_to_wait(response.headers)
        when = "" if seconds is None else f"; it asks to wait for {seconds:.0f} s"
        raise RateLimited(f"the Hub limits how often it is asked (HTTP 429){when}", retry_after=seconds)


def _seconds_to_wait(headers: httpx2.Headers) -> float | None:
    limits = parse_ratelimit_headers(headers)
    if limits is not None and limits.remaining == 0:
        return float(limits.reset_in_seconds)
    after = headers.get("Retry-After", "")
    return float(after) if after.isdecimal() else None


def _client() -> httpx2.Client:
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], _bound],
        "response": [*hooks["response"], _refuse_limited, _watch],
    }
    return client


constants.DOWNLOAD_CHUNK_SIZE = CHUNK
set_client_factory(_client)
disable_progress_bars()  # a service has no terminal
