"""Values of a report, each with the place where it is in `replaceme.json`.

A runner that has loaded a stranger's model wrote the report, and an earlier version may have: nothing of it is taken
for granted. What is not there, or of another kind, is `None` or empty.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Final
from urllib.parse import quote

from replaceme_core.report.figures import NONE, change
from replaceme_core.report.figures import number as in_few_digits
from replaceme_core.shapes import Job
from replaceme_core.wording import json_safe

Step = str | int
Place = tuple[Step, ...]
LONGEST_TEXT: Final = 4000
MOST_ROWS: Final = 200


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A value as it is shown, and as it is stored: `places` are JSON Pointers into the report.

    With two places, `value` is by which part the second differs from the first.
    """

    text: str
    value: float | None
    places: tuple[str, ...]


Piece = str | Shown
"""Words of ours, or a value of the report."""


class Report:
    """The content of `replaceme.json`."""

    def __init__(self, content: Mapping[str, object]) -> None:
        self.content = {str(name): json_safe(value) for name, value in content.items()}

    def at(self, *path: Step) -> object:
        """The value at a path of names and indexes; `None` where there is none."""
        value: object = self.content
        for step in path:
            if isinstance(value, Mapping) and isinstance(step, str):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and 0 <= step < len(value):
                value = value[step]
            else:
                return None
        return value

    def number(self, *path: Step) -> float | None:
        """A finite number."""
        return as_number(self.at(*path))

    def is_true(self, *path: Step) -> bool:
        return self.at(*path) is True

    @property
    def of_images(self) -> bool:
        """Whether the model reads images."""
        return self.at("inputs") == "images"

    def text(self, *path: Step) -> str:
        """A text, or a number in words; empty where there is none."""
        value = self.at(*path)
        if isinstance(value, str):
            return value
        return "" if (found := as_number(value)) is None else in_few_digits(found)

    def numbers(self, *path: Step) -> list[float]:
        """The finite numbers of a list."""
        value = self.at(*path)
        return [one for one in map(as_number, value if isinstance(value, list) else ()) if one is not None]

    def blocks(self, *path: Step) -> list[int]:
        """A list of block numbers."""
        return [int(one) for one in self.numbers(*path)]

    def places(self, *path: Step, most: int | None = MOST_ROWS) -> list[Place]:
        """The places of the objects in a list, up to the first that is none."""
        value = self.at(*path)
        found = takewhile(lambda one: isinstance(one, Mapping), value if isinstance(value, list) else ())
        return [(*path, row) for row, _ in enumerate(islice(found, most))]

    def bounds(self, *path: Step, low: str, high: str) -> tuple[float, float] | None:
        """The ends of an interval, where both are there."""
        found = self.number(*path, low), self.number(*path, high)
        return None if found[0] is None or found[1] is None else (found[0], found[1])

    def names(self, *path: Step) -> Sequence[str]:
        """The names in an object."""
        value = self.at(*path)
        return list(value)[:MOST_ROWS] if isinstance(value, Mapping) else []

    def figure(self, *path: Step, as_: Callable[[float], str] = in_few_digits) -> Piece:
        """The number there, in the form that `as_` gives it."""
        value = self.number(*path)
        return NONE if value is None else Shown(text=as_(value), value=value, places=(pointer(path),))

    def words(self, *path: Step) -> Piece:
        """The text there."""
        text = self.text(*path)
        shown = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
        return NONE if not text else Shown(text=shown, value=None, places=(pointer(path),))

    def line(self, *path: Step, longest: int) -> Piece:
        """The text there on one line, such as an answer of a model, which may be empty."""
        line = " ".join(self.text(*path).split())
        shown = line if len(line) <= longest else line[: longest - 1].rstrip() + "…"
        return Shown(text=shown or "(nothing)", value=None, places=(pointer(path),))

    def change(self, before: Sequence[Step], after: Sequence[Step]) -> Piece:
        """By which part one number differs from another."""
        old, new = self.number(*before), self.number(*after)
        if not old or new is None:
            return ""
        return Shown(text=change(old, new), value=new / old - 1, places=(pointer(before), pointer(after)))


def report_of(job: Job) -> Report:
    """What a job has of its report: the summary, the blocks and the gate."""
    sides = {side: {name: getattr(change, side) for name, change in job.summary or ()} for side in ("before", "after")}
    gate = None if job.gate is None else job.gate.model_dump(mode="json")
    removed = [] if job.result is None else list(job.result.removed_blocks)
    return Report({**sides, "gate": gate, "removed_blocks": removed})


def as_number(value: object) -> float | None:
    """A finite number; `None` for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def pointer(path: Sequence[Step]) -> str:
    """As the fragment of an address (RFC 6901, section 6).

    >>> pointer(["model", "a/b~c d", 0])
    '#/model/a~1b~0c%20d/0'
    """
    return "#" + "".join(f"/{quote(str(step).replace('~', '~0').replace('/', '~1'), safe='~:')}" for step in path)
