"""The Hub's client library: how long it waits, and what its replies and errors mean.

A reply may be hostile, or another one than it should be. Importing this module sets limits of time for the whole
process; by itself the library waits forever, and sleeps where the Hub asks for it, in which nothing can interrupt it.
"""

import errno
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus

import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils._http import default_client_factory, parse_ratelimit_headers
from huggingface_hub.utils.tqdm import disable_progress_bars

from replaceme_core.errors import (
    AccessDenied,
    DisabledRepository,
    GatedRepository,
    HubUnreachable,
    InvalidInput,
    OutOfSpace,
    RateLimited,
    ReplaceMeError,
    RepositoryNotFound,
    StaleParent,
)
from replaceme_core.hub.files import check_names
from replaceme_core.hub.port import RepositoryFile
from replaceme_core.library_errors import is_out_of_space
from replaceme_core.wording import shorten

TIMEOUT = httpx2.Timeout(
    connect=10, read=120, write=120, pool=None
)  # seconds without any data, not of the whole transfer
REQUEST_SECONDS = 60.0
"""Without any data, for requests about a repository."""
SLOW_SECONDS = 60.0
SLOW_BYTES = 64 * 1024
"""A reply that brings fewer bytes in `SLOW_SECONDS` is given up: a byte now and then would hold a worker for days."""
LARGEST_REPLY = 64 * 2**20
"""Bytes, unpacked, of a reply that is no file: the list of 100,000 files, which a repository may have, takes 30 MB."""
AS_IT_IS = {"Accept-Encoding": "identity"}
"""Headers with which the content of files is asked for, and nothing else: the size of other replies is limited."""
CHUNK = 1024 * 1024
"""Bytes that a download that breaks off may lose; the library's own 10 MB take minutes on a slow line."""


class _Watched(httpx2.SyncByteStream):
    """The body of a reply, unpacked unless it is a file.

    Raises `HubUnreachable` where it comes too slowly or is too large to be read at once; the library does not retry
    that.
    """

    def __init__(self, reply: httpx2.Response, *, is_file: bool) -> None:
        self._reply = reply
        self._is_file = is_file

    def __iter__(self) -> Iterator[bytes]:
        host, began, received, total = self._reply.request.url.host, time.monotonic(), 0, 0
        for part in self._reply.iter_raw() if self._is_file else self._reply.iter_bytes():
            received += len(part)
            total += len(part)
            if total > LARGEST_REPLY and not self._is_file:
                raise HubUnreachable(f"{host} sent more than {LARGEST_REPLY:,} bytes in a reply that is no file")
            yield part
            now = time.monotonic()
            if now - began >= SLOW_SECONDS:
                if received < SLOW_BYTES:
                    raise HubUnreachable(
                        f"{host} sent {received:,} bytes in {now - began:.0f} s, which is too slow to go on"
                    )
                began, received = now, 0

    def close(self) -> None:
        self._reply.close()


def _bound(request: httpx2.Request) -> None:
    """Set a timeout on a request that has none, as the library says of those for lists."""
    limits = request.extensions.get("timeout") or {}
    if all(value is None for value in limits.values()):
        request.extensions["timeout"] = TIMEOUT.as_dict()


def _watch(response: httpx2.Response) -> None:
    request, headers = response.request, response.headers
    is_file = response.is_success and request.headers.get("Accept-Encoding") == AS_IT_IS["Accept-Encoding"]
    received = httpx2.Response(response.status_code, headers=headers, stream=response.stream, request=request)
    response.stream = _Watched(received, is_file=is_file)
    if not is_file:
        headers.pop("Content-Encoding", None)


def _refuse_limited(response: httpx2.Response) -> None:
    """Raise `RateLimited`, or `HubUnreachable` for a Hub that is away, with the time that the Hub names.

    The library would sleep as long; the caller waits, and may stop waiting.
    """
    status, is_limited = response.status_code, response.status_code == HTTPStatus.TOO_MANY_REQUESTS
    if not (is_limited or status == HTTPStatus.REQUEST_TIMEOUT or status >= HTTPStatus.INTERNAL_SERVER_ERROR):
        return
    seconds = _seconds_to_wait(response.headers)
    when = "" if seconds is None else f"; it asks to wait for {seconds:.0f} s"
    if is_limited:
        raise RateLimited(f"the Hub limits how often it is asked (HTTP 429){when}", retry_after=seconds)
    if seconds is not None:
        raise HubUnreachable(f"the Hub cannot answer now (HTTP {status}){when}", retry_after=seconds)


_LONGEST_WAIT = 10**9  # seconds; nobody waits that long, and a larger number may be none


def _seconds_to_wait(headers: httpx2.Headers) -> float | None:
    limits, after = parse_ratelimit_headers(headers), headers.get("Retry-After", "")
    if limits is not None and limits.remaining == 0:
        return float(min(limits.reset_in_seconds, _LONGEST_WAIT))
    return float(min(int(after), _LONGEST_WAIT)) if after.isdecimal() else None


def _client() -> httpx2.Client:
    client = default_client_factory()
    client.event_hooks["request"].append(_bound)
    client.event_hooks["response"] += [_refuse_limited, _watch]
    return client


constants.DOWNLOAD_CHUNK_SIZE = CHUNK
constants.HF_HUB_DISABLE_TELEMETRY = True  # for it, huggingface.co is asked first, whichever Hub is set
set_client_factory(_client)
disable_progress_bars()  # a service has no terminal


LARGEST_FILE = 2**50
_COMMIT = re.compile("[0-9a-f]{40}")
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_UNUSABLE = (ValueError, KeyError, TypeError, AttributeError)
"""What the library raises for a reply that is not of the form that it expects."""
_SECRET = re.compile(r"(?<=\?)\S+|(?<=Bearer )\S+|\bhf_\w+")
_DETAIL_LIMIT = 500  # characters of the Hub's own message that are kept


def commit_of(value: object) -> str:
    """The hash of a commit in a reply, a name in the cache. Raises `ValueError` unless it is 40 hex digits."""
    return matching(_COMMIT, value, "the hash of a commit")


def files_of(siblings: Sequence[RepoSibling] | None) -> tuple[RepositoryFile, ...]:
    """The files that a reply lists, sorted by path. Raises `ValueError`, and as `check_names` does."""
    if siblings is None or not all(isinstance(one.rfilename, str) for one in siblings):
        raise ValueError("expected a list of named files")
    check_names((one.rfilename for one in siblings), count=len(siblings))
    return tuple(sorted(map(_file_of, siblings), key=lambda file: file.path))


def _file_of(one: RepoSibling) -> RepositoryFile:
    if type(one.size) is not int or not 0 <= one.size <= LARGEST_FILE:
        raise ValueError(f"expected the size of {one.rfilename}, got {shorten(repr(one.size), 100)}")
    digest = matching(_DIGEST, one.lfs.sha256 if one.lfs else one.blob_id, f"the digest of {one.rfilename}")
    return RepositoryFile(path=one.rfilename, size=one.size, digest=digest, is_large=one.lfs is not None)


def matching(pattern: re.Pattern[str], value: object, what: str) -> str:
    """A text in a reply. Raises `ValueError` where it is another value than `what` is expected there."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"expected {what}, got {shorten(repr(value), 100)}")
    return value


@contextmanager
def hub_errors(doing: str) -> Iterator[None]:
    """Turn what the client library raises into our errors; `doing` completes "... while <doing>".

    The original error is not chained: it can contain signed addresses, and a malformed token in clear.
    """
    try:
        yield
    except ReplaceMeError:
        raise
    except (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, *_UNUSABLE) as error:
        translated = _translated(error, doing)
        if translated is None:
            raise
        raise translated from None


def _translated(error: BaseException, doing: str) -> ReplaceMeError | None:
    """Our error for it; `None` if it is not about the Hub, but a bug or about files of this machine."""
    cause: BaseException | None = error
    while cause is not None:  # the library wraps: "error while uploading ..." from the HTTP error
        if isinstance(cause, ReplaceMeError):
            return cause
        if isinstance(cause, HfHubHTTPError):
            return _http_error(cause, doing)
        if isinstance(cause, (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError, TimeoutError)):
            return HubUnreachable(f"the Hub cannot be reached while {doing} ({type(cause).__name__})").because(
                _innermost(cause)  # such as a certificate that is not trusted
            )
        if is_out_of_space(cause):
            return OutOfSpace(f"no space left on the device while {doing}")
        if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
            return InvalidInput(f"the name of a file, or its path, is too long for this system while {doing}")
        cause = cause.__cause__
    if isinstance(error, HFValidationError):
        return RepositoryNotFound(f'expected a repository as "org/name" while {doing}')
    if isinstance(error, OSError) and error.errno is not None:
        return None
    return HubUnreachable(f"the Hub's answer cannot be used while {doing}").because(_innermost(error))


def _innermost(error: BaseException) -> str:
    """The innermost error, without signatures of addresses and without tokens."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = shorten(_SECRET.sub("***", str(error)), _DETAIL_LIMIT)
    return f"{type(error).__name__}: {text}"


def _http_error(error: HfHubHTTPError, doing: str) -> ReplaceMeError:
    status = error.response.status_code
    reason = f": {shorten(error.server_message, _DETAIL_LIMIT)}" if error.server_message else ""
    if isinstance(error, GatedRepoError):
        return GatedRepository(
            "the repository is gated: the owner of the token has to accept its conditions on the Hub, while "
            f"{doing}{reason}"
        )
    if isinstance(error, DisabledRepoError):
        return DisabledRepository(f"the Hub has disabled the repository, while {doing}")
    anonymous = "authorization" not in error.response.request.headers
    if isinstance(error, RepositoryNotFoundError) or (
        status == 401 and anonymous
    ):  # the Hub does not distinguish these
        return RepositoryNotFound(
            f"there is no such repository, or the token is not allowed to see it, while {doing}{reason}"
        )
    match status:
        case 404:
            return RepositoryNotFound(f"not found on the Hub while {doing}{reason}")
        case 401 | 402 | 403:
            what = "the token"
            if anonymous:  # its storage: the address is signed
                what = "access, and was sent no token,"
            return AccessDenied(f"the Hub refuses {what} while {doing} (HTTP {status}){reason}")
        case 409 | 412:
            return StaleParent(f"the repository was changed by another writer while {doing} (HTTP {status}){reason}")
        case 408 | 425:
            return HubUnreachable(f"the Hub is busy while {doing} (HTTP {status}){reason}")
        case _ if status >= 500:
            return HubUnreachable(f"the Hub failed while {doing} (HTTP {status}){reason}")
        case _:
            return InvalidInput(f"the Hub refuses the request while {doing} (HTTP {status}){reason}")
