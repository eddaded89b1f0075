"""A cut with its map, fitted in closed form from the sums of a pass."""

from dataclasses import dataclass, replace
from typing import Self

from replaceme_core.engine.activations.cut_sums import CutStatistics
from replaceme_core.engine.model.changes import Cut, FittedCut
from replaceme_core.engine.numerics.solve import RIDGES, choose_ridge, solve_delta
from replaceme_core.engine.selection.candidate import reported_ridge


@dataclass(frozen=True, kw_only=True)
class RidgeFit:
    """A map from the fit tokens alone, with its `ridge` and the relative `residual` that it leaves on held-out tokens.

    Held-out tokens judge this map: one that has been fitted on them too would look better than it is.
    """

    fitted: FittedCut
    ridge: float
    residual: float


def fit_on_fit_tokens(statistics: CutStatistics, *, ridge: float | None) -> RidgeFit:
    """The map at `ridge`, or at the one of `RIDGES` that leaves the least residual on held-out tokens.

    Raises `NumericalFailure` where no ridge gives a usable map.
    """
    ridges = RIDGES if ridge is None else (ridge,)
    best, residual = choose_ridge(statistics.fit, statistics.held_out, ridges=ridges, diagonal=statistics.diagonal)
    delta = solve_delta(statistics.fit, ridge=best, diagonal=statistics.diagonal)
    return RidgeFit(fitted=FittedCut(cut=statistics.cut, delta=delta), ridge=best, residual=residual)


@dataclass(frozen=True, kw_only=True)
class CutFit:
    """A cut with its map from all calibration tokens, and with the one from the fit tokens alone, which is judged."""

    statistics: CutStatistics
    from_all_tokens: FittedCut
    from_fit_tokens: FittedCut
    ridge: float | None

    @property
    def cut(self) -> Cut:
        return self.statistics.cut

    @property
    def residual(self) -> float:
        """What the map from the fit tokens leaves on the held-out tokens, relative to the stream."""
        return self.statistics.held_out.residual(self.from_fit_tokens.delta)

    def scaled(self, scale: float) -> Self:
        """With a part of both maps' change: 1 as it is, 0 plain removal."""
        return replace(
            self,
            from_all_tokens=self.from_all_tokens.scaled(scale),
            from_fit_tokens=self.from_fit_tokens.scaled(scale),
        )


def fit_cut(statistics: CutStatistics, *, ridge: float | None) -> CutFit:
    """In closed form, at `ridge` or at the one that held-out tokens choose.

    Sums add up, so once the ridge is chosen the held-out tokens join the fit.
    """
    judged = fit_on_fit_tokens(statistics, ridge=ridge)
    everything = statistics.fit + statistics.held_out
    delta = solve_delta(everything, ridge=judged.ridge, diagonal=statistics.diagonal)
    return CutFit(
        statistics=statistics,
        from_all_tokens=FittedCut(cut=statistics.cut, delta=delta),
        from_fit_tokens=judged.fitted,
        ridge=reported_ridge(judged.ridge),
    )
