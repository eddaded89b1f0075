"""What a result is worth, as a client reads it."""

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


class Gate(Response):
    """What became of a job's gate."""

    passed: bool
    criteria: tuple[Criterion, ...] = ()
