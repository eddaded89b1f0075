"""A gate that was judged, for people: each criterion with what was measured, its limits and the verdict."""

from collections.abc import Sequence
from typing import Protocol

from rich import box
from rich.table import Table
from rich.text import Text

from replaceme_core.request.gate import limits_in_words


class Criterion(Protocol):
    """As a report and a job have it."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def min(self) -> float | None: ...
    @property
    def max(self) -> float | None: ...
    @property
    def passed(self) -> bool: ...


def limits_of(one: Criterion) -> str:
    """Such as "at most 1.6"."""
    return limits_in_words(one.min, one.max)


def verdict_of(one: Criterion) -> str:
    """In one word."""
    return "passed" if one.passed else "missed"


def gate_table(criteria: Sequence[Criterion]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("gate", no_wrap=True)
    for name in ("measured", "wanted", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in criteria:
        style = "green" if one.passed else "red"
        table.add_row(one.name, f"{one.value:.6g}", limits_of(one), Text(verdict_of(one), style=style))
    return table


def gate_lines(criteria: Sequence[Criterion]) -> list[str]:
    """One line for each criterion."""
    return [f"{verdict_of(one)}: {one.name} {one.value:.6g}, {limits_of(one)}" for one in criteria]
