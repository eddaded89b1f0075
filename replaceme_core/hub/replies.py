"""What a Hub's replies and silences mean in our terms, and how long we wait for them.

Importing this sets the time limits of the client library for the whole process; by itself it would wait for ever.
Knows huggingface_hub and httpx2; no repository, no file.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import disable_progress_bars

from replaceme_core.disk_space import is_out_of_space
from replaceme_core.errors import (
    AccessDenied,
    HubUnreachable,
    InvalidInput,
    OutOfSpace,
    ReplaceMeError,
    RepositoryNotFound,
    StaleParent,
)

TIMEOUT = httpx2.Timeout(connect=10, read=120, write=120, pool=None)  # seconds of silence, not of the whole transfer
_SECRET = re.compile(r"(?<=\?)\S+|(?<=Bearer )\S+|\bhf_\w+")
_DETAIL_LIMIT = 500  # characters of a Hub's own words that we pass on


def _bound(request: httpx2.Request) -> None:
    """Give a time limit to a request that has none."""
    limits = request.extensions.get("timeout") or {}
    if all(value is None for value in limits.values()):
        request.extensions["timeout"] = TIMEOUT.as_dict()


def _client() -> httpx2.Client:
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "request": [*hooks["request"], _bound]}
    return client


set_client_factory(_client)
disable_progress_bars()  # a service has nobody to show them to


@contextmanager
def hub_errors(doing: str) -> Iterator[None]:
    """Turn what the client library raises into our errors; `doing` completes "... while <doing>".

    The original is not chained: it can hold signed addresses, and a badly written token in clear.
    """
    try:
        yield
    except ReplaceMeError:
        raise
    except (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, ValueError, KeyError) as error:
        meaning = _meaning(error, doing)
        if meaning is None:
            raise
        raise meaning from None


def _meaning(error: BaseException, doing: str) -> ReplaceMeError | None:
    """`None` for what is not about the Hub: a bug, or this machine's own files."""
    cause: BaseException | None = error
    while cause is not None:  # the library wraps: "error while uploading ..." from the HTTP error
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause, doing)
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
    return HubUnreachable(f"the Hub's answer cannot be used while {doing} ({_innermost(error)})")


def _innermost(error: BaseException) -> str:
    """What went wrong first, without addresses' signatures and without tokens."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = _SECRET.sub("***", str(error))[:_DETAIL_LIMIT]
    return f"{type(error).__name__}: {text}"


def _refusal(error: HfHubHTTPError, doing: str) -> ReplaceMeError:
    status = error.response.status_code
    said = f": {error.server_message[:_DETAIL_LIMIT]}" if error.server_message else ""
    if isinstance(error, GatedRepoError):
        return AccessDenied(f"the repository is gated and this token has no access to it, while {doing}{said}")
    anonymous = "authorization" not in error.response.request.headers
    if isinstance(error, RepositoryNotFoundError) or (status == 401 and anonymous):  # it does not say which
        return RepositoryNotFound(
            f"there is no such repository, or the token is not allowed to see it, while {doing}{said}"
        )
    match status:
        case 404:
            return RepositoryNotFound(f"not found on the Hub while {doing}{said}")
        case 401 | 402 | 403:
            return AccessDenied(f"the Hub refuses the token while {doing} (HTTP {status}){said}")
        case 409 | 412:
            return StaleParent(f"the repository was changed by someone else while {doing} (HTTP {status}){said}")
        case 408 | 425 | 429:
            return HubUnreachable(f"the Hub is busy while {doing} (HTTP {status}){said}")
        case _ if status >= 500:
            return HubUnreachable(f"the Hub failed while {doing} (HTTP {status}){said}")
        case _:
            return InvalidInput(f"the Hub refuses the request while {doing} (HTTP {status}){said}")
