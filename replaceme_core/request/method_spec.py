"""The part of a specification that names the method and its options."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from replaceme_core.request.defaults import DEFAULT_METHODS
from replaceme_core.request.fields import LONGEST_SECONDS, Frozen, one_of
from replaceme_core.request.method_traits import MapStructure, Method, methods_with

CosineLoss = Literal["exact", "light"]


class Selection(StrEnum):
    """How `refit` chooses the blocks that go."""

    ONE_BY_ONE = "one_by_one"
    """In each step the block without which the held-out loss is least."""
    WINDOW = "window"
    """One run of neighbours, as `least_squares` chooses it."""


class MethodSpec(Frozen):
    """The method and its strengths.

    `ridge` is relative to the mean diagonal of the Gram matrix and pulls the map toward the identity (plain removal);
    `None` lets the held-out tokens choose. `replays` is how many of the best windows are judged by held-out loss.
    `loss` is for `cosine` only. `groups` is into how many cuts, with kept blocks between them, a `ratio` is divided.
    """

    name: Annotated[Method, one_of(Method)] | None = None
    """`None`: decided on the worker, one of `DEFAULT_METHODS`."""
    ridge: float | None = Field(default=None, ge=0, le=1e6)
    replays: int = Field(default=6, ge=1, le=64)
    loss: CosineLoss = "exact"
    groups: int = Field(default=1, ge=1, le=64)
    structure: Annotated[MapStructure, one_of(MapStructure)] | None = None
    """Of `least_squares` and `cosine`; `None`: full where the model takes that over, else diagonal."""
    selection: Annotated[Selection, one_of(Selection)] = Selection.ONE_BY_ONE
    """Of `refit` only."""
    time_budget_seconds: float | None = Field(default=None, ge=1, le=LONGEST_SECONDS)
    """Of `auto` only: contenders that are not expected to end in time are left out; `None`: all are tried."""
    ridge_later: float | None = Field(default=None, ge=0, le=1e6)
    """Of `refit` only: pulls the projections after the first cut toward their old weights; relative, like `ridge`."""
    as_published: bool = False
    """Of `least_squares`: choose and fit as the reference implementation does, for comparison."""

    @model_validator(mode="after")
    def _options_of_the_method(self) -> Self:
        methods: tuple[Method, ...] = DEFAULT_METHODS if self.name is None else (self.name,)
        for option in self._options_set():
            methods = tuple(method for method in methods if method in methods_with(option))
            if not methods and self.name is None:
                raise PydanticCustomError(
                    "option_without_its_method",
                    "{field} is for {methods}; name the method",
                    {"field": option, "methods": " and ".join(methods_with(option))},
                )
            if not methods:
                raise PydanticCustomError(
                    "option_of_another_method",
                    "{field} is for {methods}, not for {name}",
                    {"field": option, "methods": " and ".join(methods_with(option)), "name": str(self.name)},
                )
        if self.as_published and self.groups > 1:
            raise PydanticCustomError("published_groups", "as published there is one cut", {"field": "groups"})
        if self.as_published and self.structure is not None:
            raise PydanticCustomError("published_structure", "as published the map is full", {"field": "structure"})
        return self

    @property
    def possible(self) -> tuple[Method, ...]:
        """The method that is named, or those of `DEFAULT_METHODS` that take the options that are set."""
        if self.name is not None:
            return (self.name,)
        options = self._options_set()
        return tuple(one for one in DEFAULT_METHODS if all(one in methods_with(option) for option in options))

    def _options_set(self) -> list[str]:
        """The options of some methods only that differ from their defaults; a stored specification has every field."""
        fields = type(self).model_fields
        return [name for name in fields if methods_with(name) and getattr(self, name) != fields[name].default]
