"""Unknown query parameters are errors on every route: a filter with a typing error would match everything."""

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from replaceme_core.errors import InvalidInput

_KNOWN: dict[int, frozenset[str]] = {}
"""By the id of a route, which lives as long as the application."""


async def refuse_unknown(request: Request) -> None:
    """A dependency of all routes. Raises `InvalidInput` for the first parameter that the route does not know."""
    if not request.scope["query_string"]:
        return
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    known = _KNOWN.get(id(route))
    if known is None:
        known = _KNOWN[id(route)] = frozenset(_parameters(route.dependant))
    for name, value in request.query_params.multi_items():
        if name not in known:
            names = ", ".join(sorted(known))
            right = f"the known ones are {names}" if known else "there are none at this path"
            raise InvalidInput(f"unknown parameter; {right}", field=name, value=value)


def _parameters(dependant: Dependant) -> Iterator[str]:
    """The names of all query parameters of a route and of what it depends on."""
    for parameter in dependant.query_params:
        kind = parameter.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from (field.alias or name for name, field in kind.model_fields.items())
        else:
            yield parameter.alias
    for each in dependant.dependencies:
        yield from _parameters(each)
