"""Rank cuts by the residual after a quick fit, before the fit tokens are run."""

import math
from dataclasses import dataclass, field, replace

from replaceme_core.engine.activations.cut_sums import CutStatistics
from replaceme_core.engine.model.changes import Cut
from replaceme_core.engine.numerics.solve import FEW_TOKENS_RIDGES, SCREENING_RIDGE, choose_ridge
from replaceme_core.engine.selection.candidate import Candidate, reported_ridge


@dataclass(kw_only=True)
class Screening:
    """A `Screen` that keeps the `most` cuts of least residual. `table` has the rows of all.

    Each is fitted at `ridge`, or at the best of `FEW_TOKENS_RIDGES`: a map from few tokens may need a large one
    (docs/explanation/how-the-default-works.md#window).
    """

    ridge: float | None
    most: int
    diagonal: bool
    table: dict[Cut, Candidate] = field(default_factory=dict)

    def add(self, statistics: CutStatistics) -> None:
        wanted = replace(statistics, diagonal=self.diagonal)
        self.table[statistics.cut] = screened_row(wanted, ridge=self.ridge, ridges=FEW_TOKENS_RIDGES)

    def remaining(self) -> list[Cut]:
        best = sorted(self.table.values(), key=residual_of)[: self.most]
        return sorted(row.cut for row in best)


def screened_row(
    statistics: CutStatistics, *, ridge: float | None, ridges: tuple[float, ...] = (SCREENING_RIDGE, math.inf)
) -> Candidate:
    """A row with the residual of a map at `ridge`, or at the one of `ridges` that leaves least."""
    tried = ridges if ridge is None else (ridge,)
    best, residual = choose_ridge(statistics.fit, statistics.held_out, ridges=tried, diagonal=statistics.diagonal)
    return Candidate(
        start=statistics.cut.start,
        end=statistics.cut.end,
        distance=statistics.angle.value,
        residual=residual,
        ridge=reported_ridge(best),
        tokens=statistics.tokens,
    )


def residual_of(row: Candidate) -> float:
    """The residual of a row that was screened."""
    assert row.residual is not None, "a screened row has a residual"
    return row.residual
