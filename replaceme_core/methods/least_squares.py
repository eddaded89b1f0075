"""One map for each cut, in closed form (ReplaceMe, arXiv 2505.02819, section 3.2; ridge toward the identity)."""

import math
from dataclasses import replace
from functools import partial

from replaceme_core.activations.cut_sums import CutStatistics
from replaceme_core.methods.cuts import Fit, capture_all_windows, fit_in_order, pruning, require_rank, runs, weighed
from replaceme_core.methods.groups import choose_groups
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.methods.published import least_squares_as_published
from replaceme_core.models.cut import FittedCut
from replaceme_core.runner.messages import Stage
from replaceme_core.selection.choose import Candidate, Screening, choose_by_loss, fit_cut

SPARE = 2
"""Windows that get the fit tokens beyond those that are replayed: the ranks of the screening are not quite the last."""
WELL_DETERMINED = 3
"""Tokens of half of the held-out text for each unknown of a column of the map (docs/decisions/0003)."""


def least_squares(task: Task) -> Pruning:
    """The named blocks, or the window that costs least after its fit, each with its map.

    At its defaults never worse on held-out tokens than the same blocks without maps: these are weighed against that.
    """
    if task.spec.method.as_published:
        return least_squares_as_published(task)
    if task.spec.drop is not None or task.spec.method.groups > 1:
        return fit_cuts(task, partial(fit_cut, ridge=task.spec.method.ridge))
    require_rank(task)
    winner, candidates = choose_window(task)
    task.clock.begin(Stage.SOLVE)
    return pruning([solve_chosen(winner, candidates)], candidates)


def fit_cuts(task: Task, fit: Fit) -> Pruning:
    """Whatever cuts the task asks for: those named, several, or a window; fitted in order and weighed."""
    require_rank(task)
    if task.spec.drop is not None:
        return weighed(task, fit_in_order(task, runs(task.spec.drop), fit))
    if task.spec.method.groups > 1:
        groups = choose_groups(task)
        result = weighed(task, fit_in_order(task, groups.cuts, fit, first=groups.first))
        return replace(result, candidates=[*groups.candidates, *result.candidates])
    winner, candidates = choose_window(task)
    task.clock.begin(Stage.SOLVE)
    result = weighed(task, [fit(winner)])
    (chosen,) = result.candidates
    return replace(result, candidates=[chosen if row.cut == chosen.cut else row for row in candidates])


def choose_window(task: Task) -> tuple[CutStatistics, list[Candidate]]:
    """The window that costs least after its fit, and the whole table.

    Windows that the held-out tokens show to be well behind are left out before the fit tokens are run.
    """
    method = task.spec.method
    screening = Screening(ridge=method.ridge, most=method.replays + SPARE, structure=task.structure)
    statistics, streams = capture_all_windows(task, screen=screening if _can_screen(task) else None)
    candidates = choose_by_loss(
        task.block_runner,
        statistics,
        streams,
        ridge=method.ridge,
        replays=method.replays,
        advance=task.clock.progress.advance,
    )
    chosen = next(candidate for candidate in candidates if candidate.chosen)
    table = screening.table | {row.cut: row for row in candidates}
    return next(one for one in statistics if one.cut == chosen.cut), [table[cut] for cut in sorted(table)]


def _can_screen(task: Task) -> bool:
    """Whether one half of the held-out tokens determines maps well enough to rank them on the other half."""
    held_out = task.tokens.held_out
    wanted = WELL_DETERMINED * task.block_runner.resolved.model.config.hidden_size
    return len(held_out) > 1 and held_out.numel() // 2 >= wanted


def solve_chosen(winner: CutStatistics, candidates: list[Candidate]) -> FittedCut:
    """The map of the chosen window, from all tokens, at the ridge and the scale that were found for it."""
    chosen = next(candidate for candidate in candidates if candidate.chosen)
    ridge = math.inf if chosen.ridge is None else chosen.ridge
    return fit_cut(winner, ridge=ridge).final.scaled(1.0 if chosen.scale is None else chosen.scale)
