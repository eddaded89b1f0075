"""One map for each cut that turns the stream toward the dense one (ReplaceMe, arXiv 2505.02819, section 3, cosine).

The cut is chosen as `least_squares` chooses it, and its map is where the descent starts.
"""

from dataclasses import replace

from replaceme_core.activations.cut_sums import CutStatistics
from replaceme_core.methods.cosine.descent import descend
from replaceme_core.methods.least_squares import fit_cuts
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.models.cut import FittedCut
from replaceme_core.selection.choose import Fitted, fit_cut


def cosine(task: Task) -> Pruning:
    """The named blocks, or those that cost least after their least-squares fit, each cut with its map."""
    done: list[FittedCut] = []

    def fit(statistics: CutStatistics) -> Fitted:
        found = _descended(task, fit_cut(statistics, ridge=task.spec.method.ridge), done=done)
        done.append(found.final)
        return found

    return fit_cuts(task, fit)


def _descended(task: Task, start: Fitted, *, done: list[FittedCut]) -> Fitted:
    """`start` with the better map in place of its own, if one was found."""
    found = descend(
        task.activations,
        start.judged,
        done=done,
        structure=start.statistics.structure,
        light=task.spec.method.loss == "light",
    )
    progress, name = task.clock.progress, str(start.cut)
    progress.metric("cosine_loss_before", found.before, "ratio", block=start.cut.anchor, candidate=name)
    progress.metric("cosine_loss", found.after, "ratio", block=start.cut.anchor, candidate=name)
    if not found.improved:
        return start
    # The map of all tokens moves as the one of the fit tokens did, so that it still knows the held-out ones.
    improved = start.final.delta + (found.fitted.delta - start.judged.delta)
    return replace(start, judged=found.fitted, final=replace(start.final, delta=improved))
