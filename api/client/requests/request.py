"""A request as a value, and its answer: what the clients that wait and those that do not have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote

T = TypeVar("T")
Value = str | int | float | bool | None
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, kw_only=True)
class Request(Generic[T]):
    """`shape` is what the body of the response is read as; `None`: it has none.

    `is_repeatable`: a second time it does nothing that the first has not done.
    """

    shape: type[T] | None
    method: str
    path: str
    body: Mapping[str, object] | None = None
    query: Sequence[tuple[str, Value]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    is_repeatable: bool = False

    @classmethod
    def of(
        cls,
        shape: type[T] | None,
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        query: Sequence[tuple[str, Value]] = (),
        headers: Mapping[str, str] | None = None,
        is_repeatable: bool = False,
    ) -> "Request[T]":
        """A request; all but `POST` are repeatable. Parameters of the query that are `None` are left out."""
        return cls(
            shape=shape,
            method=method,
            path=path,
            body=body,
            query=[(name, value) for name, value in query if value is not None],
            headers=headers or {},
            is_repeatable=is_repeatable or method in _REPEATABLE,
        )


@dataclass(frozen=True, kw_only=True)
class Answer(Generic[T]):
    """A success. `value` is `None` without a body, such as where `If-None-Match` names the present version.

    `tag` is the entity tag, `retry_after` the seconds after which to ask again.
    """

    value: T | None
    tag: str = ""
    retry_after: float | None = None


def path_of(*parts: str) -> str:
    """
    >>> path_of("jobs", "a/b", "events")
    '/jobs/a%2Fb/events'
    """
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def given(**fields: object) -> dict[str, object]:
    """The fields that are not `None`."""
    return {name: value for name, value in fields.items() if value is not None}
