"""Events of a job."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field

from api.schemas.body import Body, Query
from replaceme_core.ledger.records import JobEvent
from replaceme_core.ledger.states import EventType
from replaceme_core.wording import json_safe

_LARGEST_SEQ = 2**31 - 1
_HIGHEST_POSITION = 2**63 - 1


class EventBody(Body):
    """One entry of a job's history. `seq` counts from 1."""

    seq: int
    type: EventType
    at: datetime
    attempt: int
    data: object

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        return cls(seq=event.seq, type=event.type, at=event.at, attempt=event.attempt, data=json_safe(event.data))


class JobEventBody(EventBody):
    """An event among those of all your jobs. `position` rises from event to event; it may have gaps."""

    position: int
    job_id: str

    @classmethod
    def placed(cls, position: int, event: JobEvent) -> Self:
        return cls(position=position, job_id=event.job_id, **dict(EventBody.of(event)))


class EventsQuery(Query):
    after: Annotated[int, Field(ge=0, le=_LARGEST_SEQ)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class AllEventsQuery(Query):
    after: Annotated[int, Field(ge=0, le=_HIGHEST_POSITION, description="a position")] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
