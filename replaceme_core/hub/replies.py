"""Turns the errors of the Hub's client library into ours."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)

from replaceme_core.disk_space import is_out_of_space
from replaceme_core.errors import (
    AccessDenied,
    DisabledRepository,
    GatedRepository,
    HubUnreachable,
    InvalidInput,
    OutOfSpace,
    ReplaceMeError,
    RepositoryNotFound,
    StaleParent,
)

_SECRET = re.compile(r"(?<=\?)\S+|(?<=Bearer )\S+|\bhf_\w+")
_DETAIL_LIMIT = 500  # characters of the Hub's own message that are kept


@contextmanager
def hub_errors(doing: str) -> Iterator[None]:
    """Turn what the client library raises into our errors; `doing` completes "... while <doing>".

    The original error is not chained: it can contain signed addresses, and a malformed token in clear.
    """
    try:
        yield
    except ReplaceMeError:
        raise
    except (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, ValueError, KeyError) as error:
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
            return HubUnreachable(f"the Hub cannot be reached while {doing} ({type(cause).__name__})")
        if isinstance(cause, OSError) and is_out_of_space(cause):
            return OutOfSpace(f"no space left on the device while {doing}")
        cause = cause.__cause__
    if is_out_of_space(error):
        return OutOfSpace(f"no space left on the device while {doing}")
    if isinstance(error, HFValidationError):
        return RepositoryNotFound(f'expected a repository as "org/name" while {doing}')
    if isinstance(error, OSError) and error.errno is not None:
        return None
    return HubUnreachable(f"the Hub's answer cannot be used while {doing}").because(_innermost(error))


def _innermost(error: BaseException) -> str:
    """The innermost error, without signatures of addresses and without tokens."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = _SECRET.sub("***", str(error))[:_DETAIL_LIMIT]
    return f"{type(error).__name__}: {text}"


def _http_error(error: HfHubHTTPError, doing: str) -> ReplaceMeError:
    status = error.response.status_code
    reason = f": {error.server_message[:_DETAIL_LIMIT]}" if error.server_message else ""
    if isinstance(error, GatedRepoError):
        return GatedRepository(
            "the repository is gated: the owner of the service's token has to accept its conditions on the Hub, while "
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
            return AccessDenied(f"the Hub refuses the token while {doing} (HTTP {status}){reason}")
        case 409 | 412:
            return StaleParent(f"the repository was changed by another writer while {doing} (HTTP {status}){reason}")
        case 408 | 425:
            return HubUnreachable(f"the Hub is busy while {doing} (HTTP {status}){reason}")
        case _ if status >= 500:
            return HubUnreachable(f"the Hub failed while {doing} (HTTP {status}){reason}")
        case _:
            return InvalidInput(f"the Hub refuses the request while {doing} (HTTP {status}){reason}")
