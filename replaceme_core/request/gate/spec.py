"""What a result must be worth to be published: the part `gate` of a specification."""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from replaceme_core.request.fields import Frozen
from replaceme_core.request.gate.criterion import CriterionResult
from replaceme_core.request.gate.result import GateResult
from replaceme_core.request.gate.suite import TaskName

OF_TASKS = "tasks."


class Limits(Frozen):
    """The least and the greatest value that a criterion allows; at least one of them."""

    min: float | None = Field(default=None, ge=0)
    max: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min is None and self.max is None:
            raise PydanticCustomError("no_limit", "give min, max or both", {})
        if self.min is not None and self.max is not None and self.min > self.max:
            raise PydanticCustomError(
                "contradiction",
                "no value is at least {least} and at most {most}",
                {"field": "min", "least": self.min, "most": self.max},
            )
        return self


class ShareLimits(Limits):
    """Of a value from 0 to 1."""

    min: float | None = Field(default=None, ge=0, le=1)
    max: float | None = Field(default=None, ge=0, le=1)


class TaskLimits(Frozen):
    """The least share of the original's accuracy in a task that is kept."""

    min_kept: float = Field(ge=0)


class GateSpec(Frozen):
    """Criteria for the result, each relative to the original model; one that misses any of them is not published.

    `perplexity_ratio`, `divergence` (nats) and `agreement` are on the first text of the evaluation,
    `worst_perplexity_ratio` is the greatest over all texts. `size_ratio` is of the weights on disk.
    `accuracy_kept` is the share of the mean accuracy over all tasks, `tasks` are shares of single ones.
    """

    perplexity_ratio: Limits | None = None
    worst_perplexity_ratio: Limits | None = None
    divergence: Limits | None = None
    agreement: ShareLimits | None = None
    size_ratio: ShareLimits | None = None
    accuracy_kept: Limits | None = None
    tasks: dict[TaskName, TaskLimits] | None = Field(default=None, min_length=1, max_length=64)

    @model_validator(mode="after")
    def _decides_something(self) -> Self:
        if not self.criteria:
            names = ", ".join(type(self).model_fields)
            raise PydanticCustomError("empty_gate", "give at least one of {names}", {"names": names})
        least = None if self.perplexity_ratio is None else self.perplexity_ratio.min
        most = None if self.worst_perplexity_ratio is None else self.worst_perplexity_ratio.max
        if least is not None and most is not None and least > most:
            raise PydanticCustomError(
                "contradiction",
                "the worst text is never better than the first one, of which perplexity_ratio wants at least {least}",
                {"field": "worst_perplexity_ratio", "least": least},
            )
        return self

    @property
    def criteria(self) -> dict[str, Limits]:
        """The limits by the name of the criterion; that of a task begins with `tasks.`."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name != "tasks"}
        of_tasks = {f"{OF_TASKS}{name}": Limits(min=one.min_kept) for name, one in (self.tasks or {}).items()}
        return {name: limits for name, limits in given.items() if limits is not None} | of_tasks

    def judge(self, values: Mapping[str, float]) -> GateResult:
        """What these measured values, by the names of the criteria, are worth."""
        found = tuple(_judge(name, values[name], limits) for name, limits in self.criteria.items())
        return GateResult(passed=all(one.passed for one in found), criteria=found)


def _judge(name: str, value: float, limits: Limits) -> CriterionResult:
    above = limits.min is None or value >= limits.min
    below = limits.max is None or value <= limits.max
    return CriterionResult(name=name, value=value, min=limits.min, max=limits.max, passed=above and below)
