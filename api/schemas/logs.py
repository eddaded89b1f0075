"""The log of a job."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field

from api.schemas.body import Body, Query
from replaceme_core.ledger.attempts import KEPT_LINES
from replaceme_core.ledger.records import LogLine

_HIGHEST_NUMBER = 2**31 - 1


class LogLineBody(Body):
    """A line that the runner wrote; `number` counts from 1. Secrets and folders are removed."""

    number: int
    at: datetime
    attempt: int
    text: str

    @classmethod
    def of(cls, line: LogLine) -> Self:
        return cls(number=line.number, at=line.at, attempt=line.attempt, text=line.text)


class LogsQuery(Query):
    after: Annotated[int, Field(ge=0, le=_HIGHEST_NUMBER, description="a `number`")] = 0
    limit: Annotated[int, Field(ge=1, le=KEPT_LINES)] = KEPT_LINES
