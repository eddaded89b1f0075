"""Choose one window by its held-out loss after the fit."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from replaceme_core.engine.activations.cut_sums import CutStatistics
from replaceme_core.engine.activations.tensor_store import HeldOutStreams
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Cut
from replaceme_core.engine.selection.candidate import Candidate, reported_ridge
from replaceme_core.engine.selection.cut_fit import fit_on_fit_tokens
from replaceme_core.engine.selection.judge import Judge
from replaceme_core.engine.selection.replay import replay_together
from replaceme_core.engine.selection.screening import residual_of, screened_row
from replaceme_core.engine.selection.tournament import accepted_scale, tournament


def choose_by_loss(
    block_runner: BlockRunner,
    statistics: Sequence[CutStatistics],
    streams: HeldOutStreams,
    *,
    judge: Judge,
    ridge: float | None,
    replays: int,
    positions: int | None = None,
    advance: Callable[[float], None],
) -> tuple[list[Candidate], list[float]]:
    """All candidates, one of them chosen, and its losses by held-out batch.

    They are screened by residual, then judged by the losses of the pruned models (`tournament`): at all positions, or
    at the first `positions` of each sequence, which `judge` is for; the losses that are returned are at all.

    Where the last ones do not differ significantly, the smaller residual decides: it rests on the same
    tokens, but on every value of the stream instead of one prediction a token. The chosen
    cut's map is then compared with plain removal (`accepted_scale`), unless its `ridge` was requested.
    """
    table = {one.cut: screened_row(one, ridge=ridge) for one in statistics}
    by_cut = {one.cut: one for one in statistics}
    residuals = {cut: residual_of(row) for cut, row in table.items()}
    finalists = sorted(by_cut, key=lambda cut: residuals[cut])[:replays]
    maps = {cut: fit_on_fit_tokens(by_cut[cut], ridge=ridge) for cut in finalists}
    for cut, one in maps.items():
        table[cut] = replace(table[cut], ridge=reported_ridge(one.ridge), residual=one.residual)
        residuals[cut] = one.residual

    known: dict[tuple[Cut, float], list[float]] = {}

    def loss(cut: Cut, batch: int, scale: float = 1.0) -> float:
        of_cut = known.setdefault((cut, scale), [])
        fitted = maps[cut].fitted.scaled(scale)
        while len(of_cut) <= batch:
            of_cut += replay_together(block_runner, streams, fitted, first=len(of_cut), positions=positions)
        return of_cut[batch]

    winner, losses = tournament(finalists, judge=judge, loss=loss, rank=residuals, advance=advance)
    for cut, of_cut in losses.items():
        table[cut] = replace(
            table[cut],
            held_out_loss=judge.paired_mean(of_cut, beside=losses[winner]),
            estimated=positions is not None or len(of_cut) < len(losses[winner]),
            source_losses=judge.by_source(of_cut, beside=losses[winner]),
            chosen=cut == winner,
        )
    kept, scale = losses[winner], 1.0
    if ridge is None:
        scale, kept, none = accepted_scale(
            lambda scale: lambda batch: loss(winner, batch, scale), judge=judge, known=kept
        )
        table[winner] = replace(
            table[winner],
            scale=scale,
            plain_loss=judge.paired_mean(none, beside=kept),
            held_out_loss=judge.mean(kept),
            source_losses=judge.by_source(kept, beside=kept),
            residual=by_cut[winner].held_out.residual(maps[winner].fitted.scaled(scale).delta),
        )
    if positions is not None:
        fitted, kept = maps[winner].fitted.scaled(scale), []
        while len(kept) < judge.batches:
            kept += replay_together(block_runner, streams, fitted, first=len(kept))
    return list(table.values()), kept
