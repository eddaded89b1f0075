"""Answers 304 to a poll for a job that has not changed, before a route is looked for.

Most requests of most installations are such polls, and finding the route and preparing its arguments would take as long
as the answer itself. Everything else goes on to the routes, errors included.
"""

from collections.abc import Callable, Mapping

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth.caller import known_caller
from api.auth.guard import path_of
from api.http.request_log import set_route
from api.http.responses import is_known, known_tags, not_modified
from api.jobs.batched_reader import BatchedReader, JobRead
from replaceme_core.errors import ReplaceMeError
from replaceme_core.ledger.states import TERMINAL, JobStatus

ROUTE = "/jobs/{job_id}"
_PREFIX = "/jobs/"
_QUEUED_SECONDS, _SOONEST_SECONDS, _LATEST_SECONDS = 2, 1, 30
_ETA_PART = 20


class Unchanged:
    """ASGI middleware within `Guard`. `reader` gives that of the running application."""

    def __init__(self, app: ASGIApp, *, reader: Callable[[], BatchedReader]) -> None:
        self._app = app
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._response(scope) if _may_poll(scope) else None
        if response is None:
            await self._app(scope, receive, send)
            return
        set_route(scope, ROUTE)
        await response(scope, receive, send)

    async def _response(self, scope: Scope) -> Response | None:
        """304; `None` for a request that is no such poll, that has not seen the job as it is, or that fails."""
        path, caller = path_of(scope), known_caller(scope)
        job_id = path.removeprefix(_PREFIX)
        if caller is None or not path.startswith(_PREFIX) or not job_id or "/" in job_id:
            return None
        request = Request(scope)
        known = known_tags(request)
        if not known:
            return None
        try:
            found = await self._reader().read_status(job_id, owner=caller.owner)
        except ReplaceMeError:
            return None
        if not is_known(found.tag, known):
            return None
        return not_modified(found.tag, headers=headers_of(found))


def headers_of(found: JobRead) -> Mapping[str, str]:
    """While a job has not ended: when to ask again."""
    return {} if found.status in TERMINAL else {"Retry-After": retry_after(found.status, found.eta_seconds)}


def retry_after(status: JobStatus, eta_seconds: float | None) -> str:
    """After how many seconds to ask again for a job that has not finished: rarely while its end is far."""
    if status is JobStatus.QUEUED or eta_seconds is None:
        return str(_QUEUED_SECONDS)
    return str(min(max(round(eta_seconds / _ETA_PART), _SOONEST_SECONDS), _LATEST_SECONDS))


def _may_poll(scope: Scope) -> bool:
    """Whether this may be such a poll, by what costs nothing to look at."""
    return scope["type"] == "http" and scope["method"] == "GET" and not scope["query_string"]
