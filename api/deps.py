"""What routes are given: the ledger in one transaction (committed at the edge), the queue, the Hub, the caller.

What only looks something up is `async`, since each plain function would take a turn in the pool of threads.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import cached_property
from threading import Lock
from typing import Annotated

from fastapi import Depends, Header, Request

from api.http import deadline
from api.queue import Queue
from api.reader import Reader
from replaceme_core.errors import InvalidInput
from replaceme_core.hub.open import open_hub
from replaceme_core.hub.port import Hub
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database, LedgerSession
from replaceme_core.settings import Settings

_KEY_HEADER = "Idempotency-Key"
WRITERS = 5
"""Transactions that write at a time: fewer than connections in the pool, and far fewer than threads."""


class Services:
    """What the process talks to, each made on first use: importing the application touches nothing."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._given = settings
        self._lock = Lock()
        self.turns = asyncio.Semaphore(WRITERS)

    @cached_property
    def settings(self) -> Settings:
        return self._given or Settings()

    @property
    def database(self) -> Database:
        with self._lock:  # requests run in threads, and cached_property may make two
            return self._database

    @property
    def queue(self) -> Queue:
        with self._lock:
            return self._queue

    @property
    def hub(self) -> Hub:
        with self._lock:
            return self._hub

    @property
    def reader(self) -> Reader:
        with self._lock:
            return self._reader

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self._database)

    @cached_property
    def _database(self) -> Database:
        return Database(self.settings.resolved_database_url)

    @cached_property
    def _queue(self) -> Queue:
        return Queue(self.settings)

    @cached_property
    def _hub(self) -> Hub:
        return open_hub(self.settings)

    def open(self) -> None:
        """Make them all, so that a setting that makes no sense stops the process and not a request."""
        _ = (self.settings, self.database, self.queue, self.hub, self.reader)

    def close(self) -> None:
        """Close what was made."""
        for name in ("_reader", "_database", "_queue"):
            service: Reader | Database | Queue | None = self.__dict__.pop(name, None)
            if service is not None:
                service.close()


async def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]


async def database(services: ServicesDep) -> Database:
    return services.database


async def reader(request: Request) -> Reader:
    found: Services = request.app.state.services  # not through another dependency: this is asked most
    return found.reader


DatabaseDep = Annotated[Database, Depends(database)]
ReaderDep = Annotated[Reader, Depends(reader)]


async def writing_turn(services: ServicesDep) -> AsyncIterator[None]:
    """Wait for a turn without a thread.

    Between a route and its commit the framework takes a thread once more, to check the answer. If all threads were
    taken by requests that wait for the connection or the lock that this one holds, none of them would ever get it.
    """
    async with services.turns:
        yield


WritingTurnDep = Annotated[None, Depends(writing_turn, scope="function")]


def writing_session(database: DatabaseDep, request: Request, _: WritingTurnDep) -> Iterator[LedgerSession]:
    with database.session() as session:
        yield session
        deadline.check(request.scope)


def reading_session(database: DatabaseDep) -> Iterator[LedgerSession]:
    with database.session(read_only=True) as session:
        yield session


# scope="function": the commit comes after the route and before its response is sent. With the default scope the client
# would have been told 202 by the time a commit fails.
SessionDep = Annotated[LedgerSession, Depends(writing_session, scope="function")]
ReadingSessionDep = Annotated[LedgerSession, Depends(reading_session, scope="function")]


async def jobs(session: SessionDep) -> Jobs:
    return Jobs(session)


async def jobs_to_read(session: ReadingSessionDep) -> Jobs:
    return Jobs(session)


JobsDep = Annotated[Jobs, Depends(jobs)]
JobsToReadDep = Annotated[Jobs, Depends(jobs_to_read)]


async def idempotency_key(
    request: Request,
    key: Annotated[
        str | None,
        Header(
            alias=_KEY_HEADER,
            min_length=1,
            max_length=255,
            pattern="^[!-~]+$",  # visible ASCII
            description="Stands for this request: sent again with the same body, it answers with the first job.",
        ),
    ] = None,
) -> str | None:
    if len(request.headers.getlist(_KEY_HEADER)) > 1:
        raise InvalidInput("the header is there twice; which key is meant nobody can know", field=_KEY_HEADER)
    return key


IdempotencyKeyDep = Annotated[str | None, Depends(idempotency_key)]


async def caller() -> str:
    """The owner of what is asked for; every query names it. There is one caller until there is authentication."""
    return "anonymous"


CallerDep = Annotated[str, Depends(caller)]
