"""One map for each cut that maximises the cosine to the dense stream (ReplaceMe, arXiv 2505.02819, section 3).

The cut is chosen as `least_squares` chooses it, and its map is where the descent starts.
"""

from dataclasses import replace

from replaceme_core.engine.activations.cut_sums import CutStatistics
from replaceme_core.engine.methods.cosine.descent import descend
from replaceme_core.engine.methods.cuts import calibrate_cuts
from replaceme_core.engine.methods.protocol import Calibrated, Selected, Task
from replaceme_core.engine.model.changes import FittedCut
from replaceme_core.engine.selection.cut_fit import CutFit, fit_cut


def calibrate(task: Task) -> Calibrated | Selected:
    """The named blocks, or those that cost least after their least-squares fit, each cut with its map."""
    done: list[FittedCut] = []

    def fit(statistics: CutStatistics) -> CutFit:
        found = _improved(task, fit_cut(statistics, ridge=task.spec.method.ridge), done=done)
        done.append(found.from_all_tokens)
        return found

    return calibrate_cuts(task, fit)


def _improved(task: Task, start: CutFit, *, done: list[FittedCut]) -> CutFit:
    """`start` with a better map, if the descent finds one on the prefix that is pruned by `done`."""
    found = descend(
        task.activations,
        start.from_fit_tokens,
        done=done,
        diagonal=start.statistics.diagonal,
        light=task.spec.method.loss == "light",
    )
    progress, name = task.progress, str(start.cut)
    progress.metric("cosine_loss_before", found.before, "ratio", block=start.cut.anchor, candidate=name)
    progress.metric("cosine_loss", found.after, "ratio", block=start.cut.anchor, candidate=name)
    if not found.improved:
        return start
    # The map of all tokens moves as the one of the fit tokens did, so that what it has learned of the others stays.
    delta = start.from_all_tokens.delta + (found.fitted.delta - start.from_fit_tokens.delta)
    return replace(start, from_fit_tokens=found.fitted, from_all_tokens=replace(start.from_all_tokens, delta=delta))
