"""One map for each cut, in closed form (ReplaceMe, arXiv 2505.02819, section 3.2; ridge toward the identity)."""

import math
from functools import partial

from replaceme_core.methods.cuts import capture_all_windows, fit_in_order, pruning, require_rank, runs, weighed
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.modeling.capture import CutStatistics, FittedCut
from replaceme_core.modeling.choose import Candidate, choose_by_loss, fit_cut
from replaceme_core.progress import Stage


def least_squares(task: Task) -> Pruning:
    """The named blocks, or the window that costs least after its fit, each with its map.

    At its defaults never worse on held-out tokens than the same blocks without maps: these are weighed against that.
    """
    require_rank(task)
    if task.spec.drop is not None:
        return weighed(task, fit_in_order(task, runs(task.spec.drop), partial(fit_cut, ridge=task.spec.method.ridge)))
    winner, candidates = choose_window(task)
    task.clock.begin(Stage.SOLVE)
    return pruning([solve_chosen(winner, candidates)], candidates)


def choose_window(task: Task) -> tuple[CutStatistics, list[Candidate]]:
    """The window that costs least after its fit, and the whole table."""
    statistics, streams = capture_all_windows(task)
    method = task.spec.method
    candidates = choose_by_loss(
        task.blockwise,
        statistics,
        streams,
        ridge=method.ridge,
        replays=method.replays,
        advance=task.clock.progress.advance,
    )
    chosen = next(candidate for candidate in candidates if candidate.chosen)
    return next(one for one in statistics if one.cut == chosen.cut), candidates


def solve_chosen(winner: CutStatistics, candidates: list[Candidate]) -> FittedCut:
    """The map of the chosen window, from all tokens, at the ridge and the scale that were found for it."""
    chosen = next(candidate for candidate in candidates if candidate.chosen)
    ridge = math.inf if chosen.ridge is None else chosen.ridge
    return fit_cut(winner, ridge=ridge).final.scaled(1.0 if chosen.scale is None else chosen.scale)
