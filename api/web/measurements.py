"""The metrics of a job as tables: before and after, candidates, and what is left."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from api.schemas.metrics import MetricBody

_BEFORE, _AFTER = "before.", "after."
_COLUMNS = {
    "distance": "distance before the fit",
    "influence": "influence",
    "residual": "residual after the fit",
    "held_out_loss": "loss on held-out tokens",
    "held_out_score": "score on held-out tokens",
}
_MARKS = ("chosen", "estimated", "tokens")
_ROWS = {
    "perplexity": "perplexity",
    "text_perplexity": "perplexity on",
    "blocks": "blocks",
    "parameters": "parameters",
    "bytes": "size on disk",
    "tokens_per_second": "speed",
    "looping_answers": "answers that end in a repetition",
    "distinct_4grams": "different runs of four tokens",
}
"""Names for people, in the order in which they are shown; what has none here comes last, under its own name."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A quantity of the original model and of the result; `None`: not measured. Values are as they are stored."""

    name: str
    unit: str
    before: float | None
    after: float | None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A cut that was looked at; `values` by the name of the metric."""

    blocks: str
    values: dict[str, float] = field(default_factory=dict)

    @property
    def is_chosen(self) -> bool:
        return bool(self.values.get("chosen"))

    @property
    def is_estimated(self) -> bool:
        """Whether its loss is an estimate from some of the held-out tokens."""
        return bool(self.values.get("estimated"))


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """The tables. `columns` are pairs of metric and heading that the candidates have, with the unit of each."""

    compared: tuple[Compared, ...]
    candidates: tuple[Candidate, ...]
    columns: tuple[tuple[str, str, str], ...]
    others: tuple[MetricBody, ...]


def measurements(metrics: Sequence[MetricBody]) -> Measurements:
    """The tables of a job with these metrics, which are in the order in which they were written."""
    compared: dict[tuple[str, str | None], dict[str, MetricBody]] = {}
    candidates: dict[str, Candidate] = {}
    units: dict[str, str] = {}
    others = []
    for metric in metrics:
        side = next((side for side in (_BEFORE, _AFTER) if metric.name.startswith(side)), None)
        if side is not None:
            compared.setdefault((metric.name.removeprefix(side), metric.candidate), {})[side] = metric
        elif metric.candidate is not None and metric.name in (*_COLUMNS, *_MARKS):
            candidate = candidates.setdefault(metric.candidate, Candidate(blocks=metric.candidate))
            candidate.values[metric.name] = metric.value
            units.setdefault(metric.name, metric.unit)
        else:
            others.append(metric)
    return Measurements(
        compared=tuple(
            _compared(*key, sides) for key, sides in sorted(compared.items(), key=lambda one: _place(one[0]))
        ),
        candidates=tuple(sorted(candidates.values(), key=_rank)),
        columns=tuple((name, heading, units[name]) for name, heading in _COLUMNS.items() if name in units),
        others=tuple(others),
    )


def _compared(name: str, candidate: str | None, sides: dict[str, MetricBody]) -> Compared:
    shown = _ROWS.get(name, name.replace("_", " "))
    unit = next(iter(sides.values())).unit
    before, after = (sides[side].value if side in sides else None for side in (_BEFORE, _AFTER))
    return Compared(
        name=shown if candidate is None else f"{shown} {candidate}",
        # a number of parameters, in the row of that name, needs no unit
        unit="" if unit == shown else unit,
        before=before,
        after=after,
    )


def _place(key: tuple[str, str | None]) -> tuple[int, str]:
    names = list(_ROWS)
    name, candidate = key
    return (names.index(name) if name in names else len(names), candidate or "")


def _rank(candidate: Candidate) -> tuple[bool, float, float]:
    """The chosen ones first, then by loss; most candidates have none."""
    values = candidate.values
    loss = values.get("held_out_loss", values.get("held_out_score", math.inf))
    return not candidate.is_chosen, loss, values.get("residual", math.inf)
