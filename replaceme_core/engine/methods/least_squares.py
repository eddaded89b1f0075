"""One map for each cut, in closed form (ReplaceMe, arXiv 2505.02819, section 3.2; ridge toward the identity)."""

import math
from dataclasses import dataclass, replace
from functools import partial

from replaceme_core.engine.methods.as_published import calibrate_as_published
from replaceme_core.engine.methods.cuts import calibrate_cuts, pruning, require_rank
from replaceme_core.engine.methods.protocol import Calibrated, Pruning, Selected, Task
from replaceme_core.engine.methods.windows import CalibratedWindows, WindowChoice, calibrate_windows
from replaceme_core.engine.selection.candidate import chosen_row
from replaceme_core.engine.selection.cut_fit import fit_cut


def calibrate(task: Task, *, positions: int | None = None) -> Calibrated | Selected:
    """The named blocks, or the window that costs least after its fit, each with its map.

    At its defaults the result is never worse on held-out tokens than plain removal of the same blocks: maps are
    compared with that, and left out where they do not help. Windows are compared by the loss at the first `positions`
    of each held-out sequence, or at all.
    """
    if task.spec.method.as_published:
        return calibrate_as_published(task)
    if task.spec.drop is not None or task.spec.method.groups > 1:
        return calibrate_cuts(task, partial(fit_cut, ridge=task.spec.method.ridge))
    require_rank(task)
    return _Calibrated(windows=calibrate_windows(task), positions=positions)


@dataclass(frozen=True, kw_only=True)
class _Calibrated(Calibrated):
    windows: CalibratedWindows
    positions: int | None

    def select(self) -> "_Selected":
        found = self.windows.choose(positions=self.positions)
        return _Selected(found=found)


@dataclass(frozen=True, kw_only=True)
class _Selected(Selected):
    found: WindowChoice

    def solve(self) -> Pruning:
        """The map of the chosen window, from all tokens, at the ridge and the scale that were found for it."""
        found = self.found
        chosen = chosen_row(found.candidates)
        ridge = math.inf if chosen.ridge is None else chosen.ridge
        fitted = fit_cut(found.winner, ridge=ridge).from_all_tokens
        folds = [fitted.scaled(1.0 if chosen.scale is None else chosen.scale)]
        return replace(pruning(folds, found.candidates), held_out_losses=found.losses)
