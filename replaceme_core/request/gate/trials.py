"""A search for the deepest cut that passes a gate: its trials, their order, and which of them are worth a look."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Protocol, TypeVar

from pydantic import BeforeValidator

from replaceme_core.request.fields import Frozen, as_tuple
from replaceme_core.request.gate.criterion import CriterionResult

PERPLEXITY, ACCURACY = "perplexity_ratio", "accuracy_kept"
HEADER = ("blocks removed", "times the perplexity", "accuracy kept", "gate", "time")
NONE = "-"


class Tried(Protocol):
    """A trial as a report, or a client, has it."""

    @property
    def blocks(self) -> int: ...
    @property
    def passed(self) -> bool: ...
    @property
    def measured(self) -> Mapping[str, float]: ...
    @property
    def seconds(self) -> float: ...


T = TypeVar("T", bound=Tried)


class Trial(Frozen):
    """The removal of so many `blocks`: which ones went, what the result is worth, and how many seconds it took.

    `measured` are all values by the names of the criteria, also of those that the gate does not ask for. `problem` says
    why nothing could be measured; such a trial has missed the gate.
    """

    blocks: int
    removed_blocks: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = ()
    passed: bool
    criteria: Annotated[tuple[CriterionResult, ...], BeforeValidator(as_tuple)] = ()
    measured: dict[str, float]
    seconds: float
    problem: str | None = None

    @property
    def is_too_deep(self) -> bool:
        """Whether a cut of fewer blocks may pass, and one of more blocks cannot."""
        return self.problem is not None or any(one.is_too_deep for one in self.criteria)


def deepest(depths: Sequence[int], is_too_deep: Callable[[int], bool]) -> int | None:
    """The greatest of `depths`, which ascend, that is not too deep, by bisection; `None` where all are.

    Where quality falls with depth, that is the one. Where it does not, several depths may be the last one before a
    depth that is too deep, and this is one of them: it was seen not to be, and the next one, if any, was seen to be.

    >>> deepest([1, 2, 3, 4, 5], lambda depth: depth > 3)
    3
    """
    low, high = -1, len(depths)
    while high - low > 1:
        middle = (low + high) // 2
        if is_too_deep(depths[middle]):
            high = middle
        else:
            low = middle
    return None if low < 0 else depths[low]


def most_trials(depths: int) -> int:
    """How many of so many depths `deepest` looks at, at most.

    >>> [most_trials(depths) for depths in (1, 3, 15, 16)]
    [1, 2, 4, 5]
    """
    return depths.bit_length()


def trial_rows(trials: Iterable[Tried]) -> list[tuple[str, ...]]:
    """A row of `HEADER` for each trial, the one that removes least first; those of the Pareto front have a star.

    These remove more than any other trial of as low a perplexity and as much accuracy.
    """
    known = by_depth(trials)
    return [
        (
            f"{one.blocks}{' *' if is_on_front(one, known) else ''}",
            f"{one.measured[PERPLEXITY]:.3f}" if PERPLEXITY in one.measured else NONE,
            f"{one.measured[ACCURACY]:.1%}" if ACCURACY in one.measured else NONE,
            "passed" if one.passed else "missed",
            f"{one.seconds:,.0f} s",
        )
        for one in known
    ]


def by_depth(trials: Iterable[T]) -> list[T]:
    """The one that removes least first."""
    return sorted(trials, key=lambda one: one.blocks)


def is_on_front(one: Tried, trials: Iterable[Tried]) -> bool:
    """Whether no other trial is better in one of blocks, perplexity and accuracy, and as good in the others."""
    return bool(one.measured) and not any(_dominates(other, one) for other in trials)


def _dominates(one: Tried, other: Tried) -> bool:
    mine, its = _worth(one), _worth(other)
    return mine != its and all(a >= b for a, b in zip(mine, its, strict=True))


def _worth(one: Tried) -> tuple[float, float, float]:
    """More is better in each."""
    perplexity = one.measured.get(PERPLEXITY, math.inf)
    return one.blocks, -perplexity, one.measured.get(ACCURACY, 0.0)
