"""Plain removal of the window of least angular distance (UIDL, arXiv 2403.17887)."""

from dataclasses import dataclass

from replaceme_core.methods.cuts import pruning, select_named
from replaceme_core.methods.protocol import Calibrated, Decided, Selected, Task
from replaceme_core.methods.windows import WindowSums, report_dense_loss, sum_windows
from replaceme_core.selection.candidate import chosen_row
from replaceme_core.selection.choose import choose_by_distance
from replaceme_core.selection.cut_fit import no_map, plain_cut


def calibrate(task: Task) -> Calibrated | Selected:
    """The named blocks, or the window whose ends are nearest."""
    if task.spec.drop is not None:
        return select_named(task, plain_cut, accept=False)
    return _Calibrated(task=task, sums=sum_windows(task))


@dataclass(frozen=True, kw_only=True)
class _Calibrated(Calibrated):
    task: Task
    sums: WindowSums

    def select(self) -> Decided:
        report_dense_loss(self.task)
        candidates = choose_by_distance(
            self.task.block_runner,
            self.sums.statistics,
            self.sums.streams,
            advance=self.task.progress.advance,
        )
        winner = self.sums.of(chosen_row(candidates).cut)
        return Decided(pruning=pruning([no_map(winner)], candidates))
