"""The table that explains which blocks were chosen."""

import math
from dataclasses import asdict, dataclass

from replaceme_core.engine.model.changes import Cut


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row: a cut, and what was measured of it. What a method does not measure is `None`.

    `distance` is angular, in [0, 1], before any fit; `influence` is 1 - cosine, in [0, 2], across the block; `residual`
    is relative to the stream at the end of the cut, on held-out tokens after the fit; `tokens` is the number of
    calibration tokens that both rest on, smaller where the cut was left out early. `ridge` is `None` where there is no
    map. `held_out_loss` in nats is over all held-out tokens; where the cut was replayed on some of them only,
    `estimated` is true, and it is an estimate from the chosen cut's losses on the rest (`tournament.paired_mean`).
    `source_losses` are the same on each source of the held-out text apart, by name. `plain_loss` is without maps;
    `scale` is the part of the map's change that was accepted, below 1 where the whole of it does not lower that loss.
    Where blocks are removed one after another, `step` is the number of the step, and rows of one `group` are cuts that
    were tried together; both count from 1.
    """

    start: int
    end: int
    distance: float | None = None
    residual: float | None = None
    ridge: float | None = None
    held_out_loss: float | None = None
    chosen: bool = False
    influence: float | None = None
    step: int | None = None
    group: int | None = None
    scale: float | None = None
    plain_loss: float | None = None
    tokens: int | None = None
    estimated: bool = False
    source_losses: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        # a checkpoint reads lists back
        object.__setattr__(self, "source_losses", tuple((name, loss) for name, loss in self.source_losses))

    @property
    def cut(self) -> Cut:
        return Cut(start=self.start, end=self.end)

    def as_dict(self) -> dict[str, object]:
        """For JSON, which has no NaN and no infinity: a value that is not finite is `None`, not known."""
        losses = {name: None if _is_not_finite(loss) else loss for name, loss in self.source_losses}
        values = {name: None if _is_not_finite(value) else value for name, value in asdict(self).items()}
        return {**values, "source_losses": losses}


def chosen_row(candidates: list[Candidate]) -> Candidate:
    """The row of the cut that was chosen."""
    return next(row for row in candidates if row.chosen)


def reported_ridge(ridge: float) -> float | None:
    """A ridge as the table shows it: an infinite one makes no map."""
    return None if math.isinf(ridge) else ridge


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
