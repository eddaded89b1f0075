"""What all bodies and query parameters share, and the body of a list."""

from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class Body(BaseModel):
    """A JSON body that the service sends."""

    model_config = ConfigDict(frozen=True)


class ListBody(Body, Generic[T]):
    """One page of a list. `next_cursor` requests the next page; it is null on the last one."""

    items: list[T]
    next_cursor: str | None = None


class Query(BaseModel):
    """Query parameters. Unknown ones are refused for all routes (`api/http/queries.py`)."""

    model_config = ConfigDict(frozen=True)
