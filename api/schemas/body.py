"""What all bodies and query parameters share, and the body of a list."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

T = TypeVar("T")


class Body(BaseModel):
    """A JSON body that the service sends."""

    model_config = ConfigDict(frozen=True)


@cache
def schema_of(body: Any) -> Mapping[str, object]:
    """The JSON schema of the body of a request, given as the annotation in its route."""
    return TypeAdapter(body).json_schema()


def has_secrets(schema: Mapping[str, object]) -> bool:
    """Whether the body has a field that may be sent but is never shown."""
    properties = schema.get("properties")
    fields = properties.values() if isinstance(properties, Mapping) else ()
    return any(isinstance(field, Mapping) and field.get("writeOnly") is True for field in fields)


class ListBody(Body, Generic[T]):
    """One page of a list. `next_cursor` requests the next page; it is null on the last one."""

    items: list[T]
    next_cursor: str | None = None


class Query(BaseModel):
    """Query parameters. Unknown ones are refused for all routes (`api/http/requests.py`)."""

    model_config = ConfigDict(frozen=True)
