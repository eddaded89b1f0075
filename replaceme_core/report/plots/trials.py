"""How much is lost at each depth of the cut that a search has tried."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaceme_core.report.plots.style import ACCENT, DARK, LIGHT, axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A result without so many blocks: its perplexity and its accuracy as a part of the original's."""

    blocks: int
    perplexity: float | None
    accuracy: float | None
    has_passed: bool
    is_chosen: bool


def draw_trials(trials: Sequence[Trial], *, limits: Sequence[float | None] = (None, None)) -> "Figure":
    """Perplexity above, accuracy below where it was measured; `limits` are those of the gate."""
    from matplotlib.ticker import MaxNLocator

    shown = [
        ("perplexity, times\nthe original's (ratio)", [one.perplexity for one in trials], limits[0]),
        ("accuracy kept\n(ratio)", [one.accuracy for one in trials], limits[1]),
    ]
    shown = [one for one in shown if any(value is not None for value in one[1])]
    figure, plots = axes(0.7 + 2.1 * len(shown), rows=len(shown))
    for (label, values, limit), plot in zip(shown, plots, strict=True):
        known = sorted(
            ((one, value) for one, value in zip(trials, values, strict=True) if value is not None),
            key=lambda pair: pair[0].blocks,
        )
        plot.plot([one.blocks for one, _ in known], [value for _, value in known], color=ACCENT, linewidth=1, zorder=1)
        kinds = (
            ("passes", "o", DARK, 36),
            ("misses the gate", "X", "white", 52),
            ("taken", "D", LIGHT, 60),
        )
        for name, shape, face, size in kinds:
            some = [(one.blocks, value) for one, value in known if _kind(one) == name]
            if some:
                places, heights = zip(*some, strict=True)
                plot.scatter(
                    places, heights, marker=shape, s=size, c=face, edgecolors=DARK, linewidths=1, label=name, zorder=3
                )
        if limit is not None:
            plot.axhline(limit, color=DARK, linestyle="--", linewidth=1, label="limit of the gate")
        plot.set_ylabel(label)
        plot.grid(axis="y", color=ACCENT, alpha=0.25)
        plot.margins(y=0.15)
        plot.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, handletextpad=0.2)
    plots[-1].set_xlabel("blocks removed")
    plots[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _kind(trial: Trial) -> str:
    if trial.is_chosen:
        return "taken"
    return "passes" if trial.has_passed else "misses the gate"
