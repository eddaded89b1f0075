"""A step within a stage, as a part of the progress of that stage."""

from collections.abc import Mapping

from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import Progress, Stage


class PartOfStage(Progress):
    """Reports a step as the part from `start` to `end` of the present stage, and none of its metrics.

    Metrics of several steps would have the same names.
    """

    def __init__(self, progress: Progress, *, start: float, end: float) -> None:
        self._progress = progress
        self._start = start
        self._end = end
        self._reached = 0.0

    def resolved(self, spec: CompressionSpec, *, expected: Mapping[Stage, float]) -> None:
        """Its settings are those of the step, not of the job."""

    def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        """A step has no stages of its own."""

    def advance(self, fraction: float) -> None:
        self._reached = max(self._reached, fraction)  # a step of several parts may begin again at 0
        self._progress.advance(self._start + (self._end - self._start) * self._reached)

    def metric(
        self, name: str, value: float, unit: str, *, block: int | None = None, candidate: str | None = None
    ) -> None:
        """Not reported."""
