"""Dependencies of the routes: the ledger in one transaction, the queue, the Hub, the caller.

Dependencies that only look up a value are `async`: the framework runs plain functions in its thread pool.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Depends, Request

from api.auth.caller import caller_of
from api.http import deadline
from api.http.requests import idempotency_key
from api.jobs.batched_reader import BatchedReader
from api.jobs.event_feed import EventFeed
from api.jobs.planning import Planning
from api.jobs.report_pages import ReportPages
from api.jobs.submission import Submitter
from api.services import Services
from replaceme_core.ledger.database import Database, LedgerSession
from replaceme_core.ledger.keys import Keys, Owners


async def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]


async def database(services: ServicesDep) -> Database:
    return services.database


async def submitter(services: ServicesDep) -> Submitter:
    return services.submitter


async def planning(services: ServicesDep) -> Planning:
    return services.planning


async def feed(services: ServicesDep) -> EventFeed:
    return services.feed


async def reader(request: Request) -> BatchedReader:
    found: Services = request.app.state.services  # without a nested dependency: this is the busiest route's
    return found.reader


async def report_pages(services: ServicesDep) -> ReportPages:
    return services.report_pages


DatabaseDep = Annotated[Database, Depends(database)]
PlanningDep = Annotated[Planning, Depends(planning)]
SubmitterDep = Annotated[Submitter, Depends(submitter)]
ReaderDep = Annotated[BatchedReader, Depends(reader)]
FeedDep = Annotated[EventFeed, Depends(feed)]
ReportPagesDep = Annotated[ReportPages, Depends(report_pages)]


async def write_slot(services: ServicesDep) -> AsyncIterator[None]:
    """Wait for a write slot without occupying a thread.

    Between a route and its commit the framework takes a thread once more, to validate the response. If requests that
    wait for this one's connection or lock occupied all threads, this one would never get it: a deadlock.
    """
    async with services.write_slots:
        yield


WriteSlotDep = Annotated[None, Depends(write_slot, scope="function")]


def writing_session(database: DatabaseDep, request: Request, _: WriteSlotDep) -> Iterator[LedgerSession]:
    with database.session() as session:
        yield session
        deadline.check(request.scope)


def reading_session(database: DatabaseDep) -> Iterator[LedgerSession]:
    with database.session(read_only=True) as session:
        yield session


# scope="function": the commit happens after the route and before its response is sent. With the default scope a client
# would already have received 202 when a commit fails.
SessionDep = Annotated[LedgerSession, Depends(writing_session, scope="function")]
ReadingSessionDep = Annotated[LedgerSession, Depends(reading_session, scope="function")]


async def keys(session: SessionDep, services: ServicesDep) -> Keys:
    session.after_commit(services.callers.forget)
    return Keys(session)


async def keys_to_read(session: ReadingSessionDep) -> Keys:
    return Keys(session)


async def owners(session: SessionDep) -> Owners:
    return Owners(session)


async def owners_to_read(session: ReadingSessionDep) -> Owners:
    return Owners(session)


KeysDep = Annotated[Keys, Depends(keys)]
KeysToReadDep = Annotated[Keys, Depends(keys_to_read)]
OwnersDep = Annotated[Owners, Depends(owners)]
OwnersToReadDep = Annotated[Owners, Depends(owners_to_read)]


IdempotencyKeyDep = Annotated[str | None, Depends(idempotency_key)]


async def caller(request: Request) -> str:
    """The owner of the jobs that a request may see; every query is limited to it."""
    return caller_of(request.scope).owner


CallerDep = Annotated[str, Depends(caller)]
