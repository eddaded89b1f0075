"""`least_squares` as the reference implementation does it (mts-ai/ReplaceMe, commit of May 2025), for comparison.

Kept from it: one token of each sequence chooses the cut, all tokens count alike in the sums however long, the ridge is
added to the raw sums and pulls the map toward zero, nothing is held out, and every cut is fitted on the dense model.
Not kept are slips that are not the method: the final norm in the last hidden state, padding in the sums, an explicit
inverse of a singular matrix.
"""

import torch

from replaceme_core.engine.activations.capture import Activations, capture_distances
from replaceme_core.engine.methods.candidates import allowed_windows, least_distance
from replaceme_core.engine.methods.task import Candidate, Pruning, Task
from replaceme_core.engine.model.changes import Cut, FittedCut, runs
from replaceme_core.engine.numerics.stream import Stream
from replaceme_core.engine.numerics.sums import SOLVE_DTYPE, Moments
from replaceme_core.errors import NumericalFailure
from replaceme_core.runner.messages import Stage


def as_published(task: Task) -> Pruning:
    """Remove the named blocks, or the window that the last token of each sequence chooses; `ridge` is 0 by default."""
    task.require_rank()
    ridge = task.spec.method.ridge
    if task.spec.drop is not None:
        cuts = runs(task.spec.drop)
        candidates = [Candidate(cut=cut, ridge=ridge, chosen=True) for cut in cuts]
    else:
        angles = capture_distances(task.activations, allowed_windows(task), last_tokens=True)
        task.begin(Stage.SELECT)
        cuts, candidates = least_distance(angles)
    task.begin(Stage.SOLVE)
    maps = [published_map(task.activations, cut, ridge=0.0 if ridge is None else ridge) for cut in cuts]
    return Pruning.of_cuts(maps, candidates)


def published_map(activations: Activations, cut: Cut, *, ridge: float) -> FittedCut:
    """T = (M'M + `ridge` I)^-1 M'(L_end - Y) over all tokens. Raises `NumericalFailure` where that has no solution."""
    width, device = activations.block_runner.resolved.config.hidden_size, activations.device
    moments = Moments.zeros(width, device=device)
    for number in range(len(activations.batches)):
        write, kept, end = activations.at_cut(number, cut, done=())
        ones = torch.ones(len(write), device=device)
        moments.add(write, kept=Stream(kept), end=Stream(end), weights=ones)
        activations.advance((number + 1) / len(activations.batches))
    identity = torch.eye(width, dtype=SOLVE_DTYPE, device=device)
    factor, info = torch.linalg.cholesky_ex(moments.gram + ridge * identity)
    # Y = L_anchor - M, so M'(L_end - Y) = M'E + M'M
    whole = torch.cholesky_solve(moments.cross + moments.gram, factor)
    if int(info) != 0 or not torch.isfinite(whole).all():
        raise NumericalFailure(
            f"{moments.tokens} calibration tokens do not determine a map of width {width} as published; give a ridge"
        )
    return FittedCut(cut=cut, delta=whole - identity)
