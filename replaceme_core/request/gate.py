"""The gate: what a result must be worth to be published, how it is judged, and the search for the deepest cut."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from replaceme_core import shapes
from replaceme_core.request.fields import Frozen, Ratio, wrong
from replaceme_core.request.tasks import PAPER, TaskName, expanded
from replaceme_core.wording import json_safe, shorten

_UNITS: Mapping[str, str] = {"divergence": "nats", "embedding_distance": "1 - cosine"}
_RISES = ("perplexity_ratio", "worst_perplexity_ratio", "divergence", "embedding_distance")
"""What grows with every block that is removed; the other criteria fall."""


_RESULT = ConfigDict(extra="forbid", allow_inf_nan=False)


class CriterionResult(shapes.Criterion):
    """One criterion: its measured value, its limits, and whether the value is within them."""

    model_config = _RESULT

    @property
    def is_too_deep(self) -> bool:
        """Whether it is missed in such a way that removing fewer blocks may help.

        A result that is still too large, or that is better than wanted, asks for more blocks instead.
        """
        if self.passed:
            return False
        if self.name in _RISES:
            return self.max is not None and self.value > self.max
        return self.min is not None and self.value < self.min

    def __str__(self) -> str:
        return f"{self.name} is {self.value:.6g}, {limits_in_words(self.min, self.max)} is wanted"


def limits_in_words(least: float | None, most: float | None) -> str:
    """
    >>> limits_in_words(None, 1.6), limits_in_words(0.5, 0.9)
    ('at most 1.6', 'at least 0.5 and at most 0.9')
    """
    given = (("at least", least), ("at most", most))
    return " and ".join(f"{words} {limit:.6g}" for words, limit in given if limit is not None)


def unit_of(name: str) -> str:
    """That of the values of a criterion; most are ratios."""
    return _UNITS.get(name, "ratio")


class Trial(shapes.Trial):
    """The removal of a number of `blocks`; one with a `problem` has missed the gate."""

    model_config = _RESULT
    criteria: tuple[CriterionResult, ...] = ()

    @property
    def is_too_deep(self) -> bool:
        """Whether a cut of fewer blocks may pass, and one of more blocks cannot."""
        return self.problem is not None or any(one.is_too_deep for one in self.criteria)


def most_trials(depths: int) -> int:
    """The most trials of a search by bisection among this number of depths.

    >>> [most_trials(depths) for depths in (1, 3, 15, 16)]
    [1, 2, 4, 5]
    """
    return depths.bit_length()


class GateResult(shapes.Gate):
    """All criteria of a gate; `passed` if each of them is.

    `trials` are those of a search for the deepest cut, in their order; the criteria are those of the last cut that was
    not too deep, or of the shallowest one where all were.
    """

    model_config = _RESULT
    criteria: tuple[CriterionResult, ...]
    trials: tuple[Trial, ...] = ()

    @classmethod
    def in_report(cls, report: Mapping[str, object]) -> Self | None:
        """The one in the content of `replaceme.json`; `None` where there is none that can be read."""
        try:
            return cls.model_validate(report.get("gate"))
        except ValidationError:
            return None

    @property
    def missed(self) -> Sequence[CriterionResult]:
        return [one for one in self.criteria if not one.passed]


def rejection_in(report: Mapping[str, object]) -> str | None:
    """Why the result of a job with a gate is rejected, from its `replaceme.json`, in a sentence; `None`: it passes."""
    gate = GateResult.in_report(report)
    if gate is None:
        return "the runner did not judge the gate"
    said = "no cut passes the gate; of the best one," if gate.trials else "the result misses its gate:"
    return None if gate.passed else f"{said} {'; '.join(map(str, gate.missed))}"


OF_TASKS = "tasks."


class Limits(Frozen):
    """The least and the greatest value that a criterion allows; at least one of them."""

    min: float | None = Field(default=None, ge=0)
    """Least value that passes."""
    max: float | None = Field(default=None, ge=0)
    """Greatest value that passes."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise wrong("min", f"no value is at least {self.min} and at most {self.max}")
        return self


class ShareLimits(Limits):
    """Of a value from 0 to 1."""

    min: float | None = Field(default=None, ge=0, le=1)
    """Least value that passes."""
    max: float | None = Field(default=None, ge=0, le=1)
    """Greatest value that passes."""


class TaskLimits(Frozen):
    """The least share of the original's accuracy in a task that is kept."""

    min_kept: float = Field(ge=0)
    """Least share of the original's accuracy."""


class GateSpec(Frozen):
    """Criteria for the result, each relative to the original; one that misses any of them is not published."""

    perplexity_ratio: Limits | None = None
    """Perplexity, divided by the original's, on the first text of the evaluation."""
    worst_perplexity_ratio: Limits | None = None
    """The greatest such ratio over all texts."""
    divergence: Limits | None = None
    """Mean Kullback-Leibler divergence from the original's predictions on the first text, in nats."""
    agreement: ShareLimits | None = None
    """How often both predict the same token on the first text; of images, find the same image nearest."""
    size_ratio: ShareLimits | None = None
    """Bytes of the weights on disk, divided by the original's."""
    accuracy_kept: Limits | None = None
    """Mean accuracy over all tasks, divided by the original's."""
    embedding_distance: Limits | None = None
    """Of models of images: mean distance (1 - cosine) to the embeddings of the original."""
    tasks: dict[TaskName, TaskLimits] | None = Field(default=None, min_length=1, max_length=64)
    """Accuracy of single tasks, by name."""

    @model_validator(mode="after")
    def _decides_something(self) -> Self:
        if not self.criteria:
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        least = None if self.perplexity_ratio is None else self.perplexity_ratio.min
        most = None if self.worst_perplexity_ratio is None else self.worst_perplexity_ratio.max
        if least is not None and most is not None and least > most:
            raise wrong(
                "worst_perplexity_ratio",
                f"the worst text is never better than the first one, of which perplexity_ratio wants at least {least}",
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
    # of 500 questions 360 in place of 400 are 0.72 / 0.8, which is less than 0.9 by rounding alone
    meets = any(limit is not None and math.isclose(value, limit) for limit in (limits.min, limits.max))
    return CriterionResult(name=name, value=value, min=limits.min, max=limits.max, passed=meets or (above and below))


def check_conditions(gate: GateSpec | None, *, deepest: bool, evaluated: bool, tasks: Sequence[str]) -> None:
    """Raise the error of a validator where a gate is missing, or judges what is not measured.

    `deepest`: the deepest cut that passes is asked for.
    """
    if gate is None:
        if deepest:
            raise wrong(
                "gate",
                "the deepest cut that passes a gate is asked for (ratio.max), and there is no gate: give gate, such as "
                '{"perplexity_ratio": {"max": 1.6}}, or ratio as a number',
            )
        return
    if not evaluated:
        raise wrong(
            "gate", "a gate judges what the evaluation measures: turn evaluation.enabled on, or leave the gate out"
        )
    run = expanded(tasks)
    missing = [name for name in gate.tasks or () if name not in run]
    if PAPER in missing:
        raise wrong("gate", f"{PAPER} stands for several tasks: judge one of them, or all of them by accuracy_kept")
    if missing:
        raise wrong("gate", f"the gate judges tasks that are not run: name {', '.join(missing)} in evaluation.tasks")
    if gate.accuracy_kept is not None and not run:
        raise wrong(
            "gate",
            "accuracy_kept is of tasks, and none is run: name some in evaluation.tasks; for a model of images, which "
            "has no tasks, leave it out",
        )


class DeepestCut(Frozen):
    """Remove as many blocks as still pass the gate, at most the fraction `max` of them, rounded as any ratio is."""

    max: Ratio
    """Greatest fraction of the blocks to remove, between 0 and 1."""


def number_or_deepest(value: object) -> object:
    """One error at one path, where a union would have one for each of its members."""
    if isinstance(value, dict):
        try:
            return DeepestCut.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise PydanticCustomError(first["type"], "{problem}", {"field": field, "problem": first["msg"]}) from None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, DeepestCut) and not (is_number and 0 < value < 1):  # type: ignore[operator]
        got = shorten(json.dumps(json_safe(value), ensure_ascii=False), 60)
        raise ValueError(f"expected a number greater than 0 and less than 1, got {got}")
    return value


RatioOrDeepest = Annotated[Ratio | DeepestCut, BeforeValidator(number_or_deepest)]


_CRITERION = re.compile(r"(?P<name>tasks\.[\w.-]+|\w+) *(?P<sign><=|>=) *(?P<limit>\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)")
_BOUNDS = {"<=": "max", ">=": "min"}


def written_criteria(gate: GateSpec | None) -> list[str]:
    """What `read_criteria` reads: each limit, such as "perplexity_ratio<=1.6"."""
    criteria = {} if gate is None else gate.criteria
    return [
        f"{name}{sign}{limit}"
        for name, limits in criteria.items()
        for sign, bound in _BOUNDS.items()
        if (limit := getattr(limits, bound)) is not None
    ]


def read_criteria(criteria: Iterable[str]) -> dict[str, object]:
    """The field `gate` of a specification; empty without criteria. Names and limits are not checked.

    Raises `ValueError`, whose text is for people, where one cannot be read.

    >>> read_criteria(["perplexity_ratio<=1.6", "agreement >= 0.7", "agreement<=0.9"])
    {'perplexity_ratio': {'max': 1.6}, 'agreement': {'min': 0.7, 'max': 0.9}}
    """
    gate: dict[str, dict[str, float]] = {}
    tasks: dict[str, dict[str, float]] = {}
    for text in criteria:
        found = _CRITERION.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"expected a criterion such as perplexity_ratio<=1.6, got {text!r}")
        _, is_task, task = found["name"].partition(OF_TASKS)
        if is_task and found["sign"] == "<=":
            raise ValueError(f"of a task the least share is given: {found['name']}>=0.95")
        limits = tasks.setdefault(task, {}) if is_task else gate.setdefault(found["name"], {})
        bound = "min_kept" if is_task else _BOUNDS[found["sign"]]
        if bound in limits:
            raise ValueError(f"{found['name']} has two limits with {found['sign']}")
        limits[bound] = float(found["limit"])
    return {**gate, **({"tasks": tasks} if tasks else {})}
