"""Choose the cut: by what is left after the fit, not by the distance before it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch

from replaceme_core.activations.cut_sums import CutStatistics
from replaceme_core.activations.held_out_loss import mean_loss
from replaceme_core.activations.held_out_streams import HeldOutStreams
from replaceme_core.models.block_runner import BlockRunner
from replaceme_core.models.cut import Cut, FittedCut
from replaceme_core.numerics.solve import FEW_TOKENS_RIDGES, RIDGES, SCREENING_RIDGE, choose_ridge, solve_delta
from replaceme_core.numerics.structure import MapStructure
from replaceme_core.selection.replay import replay
from replaceme_core.selection.tournament import accepted_scale, paired_mean, tournament


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of the table that explains the choice. What a method does not look at is `None`.

    `distance` is angular, in [0, 1], before any fit; `influence` is 1 - cosine, in [0, 2], across the block;
    `residual` is relative to the stream at the end of the cut, on held-out tokens after the fit; `tokens` is on how
    many calibration tokens both rest, fewer where the cut was left out early. `ridge` is `None` where no map is made.
    `held_out_loss` in nats is over all held-out tokens; where the cut was replayed on some of them, those of the
    chosen one stand in for the rest (`paired_mean`). `plain_loss` is the same without maps; `scale` the part of the
    map's change that was applied, less than 1 where the whole of it does not lower that loss. Where blocks are taken
    one after another, `step` says which choice the row belongs to, and rows of one `group` are cuts that were tried
    together; both count from 1.
    """

    start: int
    end: int
    distance: float | None = None
    residual: float | None = None
    ridge: float | None = None
    held_out_loss: float | None = None
    chosen: bool = False
    influence: float | None = None
    step: int | None = None
    group: int | None = None
    scale: float | None = None
    plain_loss: float | None = None
    tokens: int | None = None

    @property
    def cut(self) -> Cut:
        return Cut(start=self.start, end=self.end)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def finite(ridge: float) -> float | None:
    """A ridge as it is reported: an infinite one makes no map."""
    return None if math.isinf(ridge) else ridge


def fit_map(statistics: CutStatistics, *, ridge: float | None) -> tuple[float, float, torch.Tensor]:
    """The ridge (chosen on held-out tokens if `None`), its held-out residual, and the map fitted on all tokens.

    The sums add up, so once the ridge is chosen the held-out tokens join the fit.
    """
    ridges = RIDGES if ridge is None else (ridge,)
    structure = statistics.structure
    best, residual = choose_ridge(statistics.fit, statistics.held_out, ridges=ridges, structure=structure)
    return best, residual, solve_delta(statistics.fit + statistics.held_out, ridge=best, structure=structure)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A cut with its map from all calibration tokens, `final`, and with the one from the fit tokens alone, `judged`.

    Held-out tokens judge the second: a map that has seen them would flatter itself. `residual` is what it leaves there.
    """

    statistics: CutStatistics
    final: FittedCut
    judged: FittedCut
    ridge: float | None

    @property
    def cut(self) -> Cut:
        return self.statistics.cut

    @property
    def residual(self) -> float:
        return self.statistics.held_out.residual(self.judged.delta)

    def scaled(self, scale: float) -> "Fitted":
        return replace(self, final=self.final.scaled(scale), judged=self.judged.scaled(scale))


def fit_cut(statistics: CutStatistics, *, ridge: float | None) -> Fitted:
    """In closed form, at `ridge` or at the one that held-out tokens choose."""
    best, _, delta = fit_map(statistics, ridge=ridge)
    judged = solve_delta(statistics.fit, ridge=best, structure=statistics.structure)
    return Fitted(
        statistics=statistics,
        final=FittedCut(cut=statistics.cut, delta=delta),
        judged=FittedCut(cut=statistics.cut, delta=judged),
        ridge=finite(best),
    )


def plain_cut(statistics: CutStatistics) -> Fitted:
    """Nothing in the place of the blocks."""
    nothing = FittedCut(cut=statistics.cut, delta=plain(statistics))
    return Fitted(statistics=statistics, final=nothing, judged=nothing, ridge=None)


def plain(statistics: CutStatistics) -> torch.Tensor:
    """The change of the map when nothing compensates: none."""
    return torch.zeros_like(statistics.fit.gram)


@dataclass(kw_only=True)
class Screening:
    """A `Screen`: the `most` cuts of least residual stay. `table` has all rows.

    Each has a map at `ridge`, or at the best of `FEW_TOKENS_RIDGES`: a map from few tokens may need a large one
    (docs/decisions/0003).
    """

    ridge: float | None
    most: int
    structure: MapStructure
    table: dict[Cut, Candidate] = field(default_factory=dict)

    def add(self, statistics: CutStatistics) -> None:
        wanted = replace(statistics, structure=self.structure)
        self.table[statistics.cut] = screened_row(wanted, ridge=self.ridge, ridges=FEW_TOKENS_RIDGES)

    def remaining(self) -> list[Cut]:
        best = sorted(self.table.values(), key=_residual)[: self.most]
        return sorted(row.cut for row in best)


def screened_row(
    statistics: CutStatistics, *, ridge: float | None, ridges: tuple[float, ...] = (SCREENING_RIDGE, math.inf)
) -> Candidate:
    """With a map at `ridge`, or at the one of `ridges` that does most good."""
    tried = ridges if ridge is None else (ridge,)
    best, residual = choose_ridge(statistics.fit, statistics.held_out, ridges=tried, structure=statistics.structure)
    return Candidate(
        start=statistics.cut.start,
        end=statistics.cut.end,
        distance=statistics.angle.value,
        residual=residual,
        ridge=finite(best),
        tokens=statistics.tokens,
    )


def choose_by_loss(
    block_runner: BlockRunner,
    statistics: Sequence[CutStatistics],
    streams: HeldOutStreams,
    *,
    ridge: float | None,
    replays: int,
    advance: Callable[[float], None],
) -> list[Candidate]:
    """All candidates, one of them chosen: screened by residual, then by loss in rounds that halve the field.

    Each round replays the survivors on more of the held-out tokens (`tournament`).
    Where these do not tell the last two apart, the smaller residual does: it rests on the same held-out tokens, but on
    every value of the stream instead of one prediction a token. The chosen one's map is then weighed against plain
    removal (`earned_scale`), unless its `ridge` was asked for.
    """
    table = {one.cut: screened_row(one, ridge=ridge) for one in statistics}
    by_cut = {one.cut: one for one in statistics}
    residuals = {cut: _residual(row) for cut, row in table.items()}
    best_few = sorted(by_cut, key=lambda cut: residuals[cut])[:replays]
    deltas = {}
    for cut in best_few:
        # Judged with the map of the fit tokens alone: one that has seen the held-out tokens would flatter itself.
        one = by_cut[cut]
        best, residual = choose_ridge(
            one.fit, one.held_out, ridges=RIDGES if ridge is None else (ridge,), structure=one.structure
        )
        deltas[cut] = FittedCut(cut=cut, delta=solve_delta(one.fit, ridge=best, structure=one.structure))
        table[cut] = replace(table[cut], ridge=finite(best), residual=residual)
        residuals[cut] = residual
    winner, losses = tournament(
        best_few,
        batches=len(streams.tokens),
        loss=lambda cut, batch: replay(block_runner, streams, deltas[cut], batch=batch),
        rank=residuals,
        advance=advance,
    )
    mean = partial(mean_loss, batches=streams.tokens)
    for cut, of_cut in losses.items():
        estimate = paired_mean(of_cut, beside=losses[winner], mean=mean)
        table[cut] = replace(table[cut], held_out_loss=estimate, chosen=cut == winner)
    if ridge is None:

        def loss_at(scale: float) -> Callable[[int], float]:
            fitted = deltas[winner].scaled(scale)
            return lambda batch: replay(block_runner, streams, fitted, batch=batch)

        scale, kept, none = accepted_scale(loss_at, batches=len(streams.tokens), known=losses[winner])
        table[winner] = replace(
            table[winner],
            scale=scale,
            plain_loss=paired_mean(none, beside=kept, mean=mean),
            held_out_loss=mean(kept),
            residual=by_cut[winner].held_out.residual(deltas[winner].scaled(scale).delta),
        )
    return list(table.values())


def _residual(row: Candidate) -> float:
    assert row.residual is not None, "a row of the screening has one"
    return row.residual


def choose_by_distance(
    block_runner: BlockRunner,
    statistics: Sequence[CutStatistics],
    streams: HeldOutStreams,
    *,
    advance: Callable[[float], None],
) -> list[Candidate]:
    """All candidates, the one of least angular distance chosen; its loss is that of plain removal (UIDL)."""
    nearest = min(statistics, key=lambda one: one.angle.value)
    table = []
    for one in statistics:
        chosen = one is nearest
        fitted = FittedCut(cut=one.cut, delta=plain(one))
        table.append(
            Candidate(
                start=one.cut.start,
                end=one.cut.end,
                distance=one.angle.value,
                residual=one.held_out.residual(fitted.delta),
                tokens=one.tokens,
                held_out_loss=_held_out_loss(block_runner, streams, fitted) if chosen else None,
                chosen=chosen,
            )
        )
    advance(1.0)
    return table


def _held_out_loss(block_runner: BlockRunner, streams: HeldOutStreams, fitted: FittedCut) -> float:
    losses = [replay(block_runner, streams, fitted, batch=batch) for batch in range(len(streams.tokens))]
    return mean_loss(losses, streams.tokens)
