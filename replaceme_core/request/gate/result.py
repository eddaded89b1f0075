"""What became of a gate: every criterion with its value, its limits and the verdict."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import BeforeValidator, ValidationError

from replaceme_core.request.fields import Frozen, as_tuple
from replaceme_core.request.gate.criterion import CriterionResult
from replaceme_core.request.gate.trials import Trial


class GateResult(Frozen):
    """All criteria of a gate; `passed` if each of them is.

    `trials` are those of a search for the deepest cut, in their order; the criteria are those of the last cut that was
    not too deep, or of the shallowest one where all were.
    """

    passed: bool
    criteria: Annotated[tuple[CriterionResult, ...], BeforeValidator(as_tuple)]
    trials: Annotated[tuple[Trial, ...], BeforeValidator(as_tuple)] = ()

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
        missed = "; ".join(map(str, self.missed))
        if self.trials:
            return f"no cut passes the gate; of the best one, {missed}"
        return f"the result misses its gate: {missed}"
