"""What became of a gate: every criterion with its value, its limits and the verdict."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import BeforeValidator, ValidationError

from replaceme_core.fields import Frozen, as_tuple

UNITS: Mapping[str, str] = {"divergence": "nats"}
"""Units of the criteria; the others are ratios."""


class CriterionResult(Frozen):
    """One criterion: its measured value, its limits, and whether the value is within them."""

    name: str
    value: float
    min: float | None
    max: float | None
    passed: bool

    @property
    def unit(self) -> str:
        return UNITS.get(self.name, "ratio")

    def __str__(self) -> str:
        return f"{self.name} is {self.value:.6g}, {self.limits} is wanted"

    @property
    def limits(self) -> str:
        """Such as "at most 1.6"."""
        given = (("at least", self.min), ("at most", self.max))
        return " and ".join(f"{words} {limit:.6g}" for words, limit in given if limit is not None)


class GateResult(Frozen):
    """All criteria of a gate; `passed` if each of them is."""

    passed: bool
    criteria: Annotated[tuple[CriterionResult, ...], BeforeValidator(as_tuple)]

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

    def __str__(self) -> str:
        """One sentence."""
        if self.passed:
            return "the result passes its gate"
        return f"the result misses its gate: {'; '.join(map(str, self.missed))}"
