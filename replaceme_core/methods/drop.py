"""Plain removal: the window of least angular distance, nothing in its place (UIDL, arXiv 2403.17887)."""

from replaceme_core.methods.cuts import capture_all_windows, fit_in_order, pruning, rows, runs
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.runner.messages import Stage
from replaceme_core.selection.choose import choose_by_distance, plain_cut


def drop(task: Task) -> Pruning:
    """The named blocks, or the window whose ends are nearest."""
    if task.spec.drop is not None:
        fitted = fit_in_order(task, runs(task.spec.drop), plain_cut)
        return pruning([one.final for one in fitted], rows(fitted))
    statistics, streams = capture_all_windows(task)
    candidates = choose_by_distance(task.block_runner, statistics, streams, advance=task.clock.progress.advance)
    task.clock.begin(Stage.SOLVE)
    chosen = next(candidate for candidate in candidates if candidate.chosen)
    winner = next(one for one in statistics if one.cut == chosen.cut)
    return pruning([plain_cut(winner).final], candidates)
