"""What a pipeline or a method tells of itself, kept for the test."""

from replaceme_core.progress import Stage
from replaceme_core.spec import CompressionSpec


class Recorder:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.spec: CompressionSpec | None = None
        self.stages: list[Stage] = []
        self.fractions: list[tuple[Stage, float]] = []
        self.metrics: list[tuple[Stage, str, float, str, int | None, str | None]] = []

    def resolved(self, spec: CompressionSpec) -> None:
        self.spec = spec

    def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        self.stages.append(stage)

    def advance(self, fraction: float) -> None:
        self.fractions.append((self.stages[-1], fraction))

    def metric(
        self, name: str, value: float, unit: str, *, block: int | None = None, candidate: str | None = None
    ) -> None:
        self.metrics.append((self.stages[-1], name, value, unit, block, candidate))

    def value(self, name: str) -> float:
        (found,) = self.values(name)
        return found

    def values(self, name: str) -> list[float]:
        return [value for _, known, value, *_ in self.metrics if known == name]
