"""What a result is worth, as a client reads it."""

from pydantic import Field

from api.client.responses.base import Response


class Change(Response):
    """Of the original model and of the result; `None`: not measured."""

    before: float | None = None
    after: float | None = None


class JobSummary(Response):
    """What a result is, in three lines."""

    blocks: Change
    parameters: Change
    perplexity: Change


class Criterion(Response):
    """A criterion of a gate: what was measured, its limits, and whether the value is within them."""

    name: str
    value: float
    min: float | None = None
    max: float | None = None
    passed: bool


class Trial(Response):
    """A trial of a search for the deepest cut: how many `blocks` it removes, and what its result is worth.

    `measured` has values by the names of criteria; `problem` says why there are none.
    """

    blocks: int
    removed_blocks: tuple[int, ...] = ()
    passed: bool
    criteria: tuple[Criterion, ...] = ()
    measured: dict[str, float] = Field(default_factory=dict)
    seconds: float
    problem: str | None = None


class Gate(Response):
    """What became of a job's gate; `trials` are those of a search for the deepest cut."""

    passed: bool
    criteria: tuple[Criterion, ...] = ()
    trials: tuple[Trial, ...] = ()
