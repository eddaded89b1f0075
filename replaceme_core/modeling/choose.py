"""Choose the cut: by what is left after the fit, not by the distance before it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from replaceme_core.modeling.blockwise import BlockwiseModel
from replaceme_core.modeling.capture import Cut, CutStatistics, FittedCut, HeldOutStreams
from replaceme_core.modeling.replay import predictions, replay
from replaceme_core.modeling.tournament import tournament
from replaceme_core.numerics.solve import RIDGES, SCREENING_RIDGE, choose_ridge, solve_delta


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of the table that explains the choice. What a method does not look at is `None`.

    `distance` is angular, in [0, 1], before any fit; `influence` is 1 - cosine, in [0, 2], across the block;
    `residual` is relative to the stream at the end of the cut, on held-out tokens after the fit; `held_out_loss` in
    nats, over the tokens that the cut was replayed on. Where blocks are taken one after another, `step` says which
    choice the row belongs to, from 1.
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

    @property
    def cut(self) -> Cut:
        return Cut(start=self.start, end=self.end)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def fit_map(statistics: CutStatistics, *, ridge: float | None) -> tuple[float, float, torch.Tensor]:
    """The ridge (chosen on held-out tokens if `None`), its held-out residual, and the map fitted on all tokens.

    The sums add up, so once the ridge is chosen the held-out tokens join the fit.
    """
    ridges = RIDGES if ridge is None else (ridge,)
    structure = statistics.structure
    best, residual = choose_ridge(statistics.fit, statistics.held_out, ridges=ridges, structure=structure)
    return best, residual, solve_delta(statistics.fit + statistics.held_out, ridge=best, structure=structure)


def plain(statistics: CutStatistics) -> torch.Tensor:
    """The change of the map when nothing compensates: none."""
    return torch.zeros_like(statistics.fit.gram)


def choose_by_loss(
    blockwise: BlockwiseModel,
    statistics: Sequence[CutStatistics],
    streams: HeldOutStreams,
    *,
    ridge: float | None,
    replays: int,
    advance: Callable[[float], None],
) -> list[Candidate]:
    """All candidates, one of them chosen: screened by residual, then by loss in rounds that halve the field.

    Each round replays the survivors on more of the held-out tokens; the last two meet on all of them. The loss of a
    candidate is over the tokens that it was replayed on, so only those of the last round compare to the digit.
    Where these do not tell the last two apart, the smaller residual does: it rests on the same held-out tokens, but on
    every value of the stream instead of one prediction a token.
    """
    screening = SCREENING_RIDGE if ridge is None else ridge
    table = {}
    for one in statistics:
        _, residual = choose_ridge(one.fit, one.held_out, ridges=(screening,), structure=one.structure)
        table[one.cut] = Candidate(
            start=one.cut.start, end=one.cut.end, distance=one.angle.value, residual=residual, ridge=screening
        )
    by_cut = {one.cut: one for one in statistics}
    residuals = {cut: row.residual for cut, row in table.items() if row.residual is not None}
    field = sorted(by_cut, key=lambda cut: residuals[cut])[:replays]
    deltas = {}
    for cut in field:
        # Judged with the map of the fit tokens alone: one that has seen the held-out tokens would flatter itself.
        one = by_cut[cut]
        best, residual = choose_ridge(
            one.fit, one.held_out, ridges=RIDGES if ridge is None else (ridge,), structure=one.structure
        )
        deltas[cut] = FittedCut(cut=cut, delta=solve_delta(one.fit, ridge=best, structure=one.structure))
        table[cut] = replace(table[cut], ridge=best, residual=residual)
        residuals[cut] = residual
    winner, losses = tournament(
        field,
        batches=len(streams.tokens),
        loss=lambda cut, batch: replay(blockwise, streams, deltas[cut], batch=batch),
        rank=residuals,
        advance=advance,
    )
    for cut, of_cut in losses.items():
        loss = sum(of_cut) / predictions(streams, batches=len(of_cut))
        table[cut] = replace(table[cut], held_out_loss=loss, chosen=cut == winner)
    return list(table.values())


def choose_by_distance(
    blockwise: BlockwiseModel,
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
                held_out_loss=_whole_loss(blockwise, streams, fitted) if chosen else None,
                chosen=chosen,
            )
        )
    advance(1.0)
    return table


def _whole_loss(blockwise: BlockwiseModel, streams: HeldOutStreams, fitted: FittedCut) -> float:
    batches = range(len(streams.tokens))
    total = sum(replay(blockwise, streams, fitted, batch=batch) for batch in batches)
    return total / predictions(streams, batches=len(batches))
