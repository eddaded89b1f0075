"""Where one source of the held-out text alone would have chosen other blocks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from replaceme_core.engine.selection.candidate import Candidate


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """On `source` blocks `start` to `end` lose `loss` nats, and the chosen ones `chosen_loss`."""

    source: str
    start: int
    end: int
    loss: float
    chosen_loss: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def disagreements(candidates: Sequence[Candidate]) -> list[Disagreement]:
    """For each source that prefers another window than the chosen one, the window that it prefers.

    Windows that were left out before they ran on all held-out tokens do not count, and neither do rows of a choice in
    steps or in groups, which are no alternatives to each other.
    """
    rows = [
        row for row in candidates if row.source_losses and not row.estimated and row.step is None and row.group is None
    ]
    chosen = next((dict(row.source_losses) for row in rows if row.chosen), None)
    if chosen is None:
        return []
    found = []
    for source, loss in chosen.items():
        best = min(rows, key=lambda row: dict(row.source_losses)[source])
        least = dict(best.source_losses)[source]
        if least < loss:
            found.append(Disagreement(source=source, start=best.start, end=best.end, loss=least, chosen_loss=loss))
    return found
