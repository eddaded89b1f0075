"""How far a job is and how long it will take: weights of the stages, and the time that went by. Pure arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from replaceme_core.progress import Stage
from replaceme_core.spec import CompressionSpec

# shares of a job's wall time on SmolLM2-135M at the defaults of a CPU; only their proportions matter
WEIGHTS: Mapping[Stage, float] = MappingProxyType(
    {
        Stage.RESOLVE: 1,
        Stage.DOWNLOAD: 5,
        Stage.CALIBRATE: 60,
        Stage.SELECT: 17,
        Stage.SOLVE: 1,
        Stage.FOLD: 1,
        Stage.SAVE: 4,
        Stage.EVALUATE: 35,
        Stage.PUBLISH: 3,
    }
)
ETA_FROM = 0.03  # of the whole; before that an estimate is a guess
ETA_AFTER_SECONDS = 2.0


def stages_of(spec: CompressionSpec) -> tuple[Stage, ...]:
    """The stages that this job goes through, in order."""
    return tuple(stage for stage in Stage if stage is not Stage.EVALUATE or spec.evaluation.enabled)


@dataclass
class Course:
    """The way through the stages. Never runs backwards, also where a stage is entered twice.

    `started` and every `now` are seconds of the same monotonic clock.
    """

    stages: tuple[Stage, ...]
    started: float
    stage: Stage = Stage.RESOLVE
    fraction: float = 0.0
    _overall: float = field(default=0.0, init=False)

    def move(self, stage: Stage, fraction: float) -> None:
        """Stand at `fraction` (0 to 1; anything else is brought into that range) of `stage`."""
        self.stage = stage
        self.fraction = min(max(fraction, 0.0), 1.0) if fraction == fraction else 0.0
        if stage in self.stages:
            whole = sum(WEIGHTS[each] for each in self.stages)
            before = sum(WEIGHTS[each] for each in self.stages[: self.stages.index(stage)])
            self._overall = max(self._overall, (before + WEIGHTS[stage] * self.fraction) / whole)

    @property
    def overall(self) -> float:
        """The part of the whole job that is done, 0 to 1."""
        return self._overall

    def eta_seconds(self, now: float) -> float | None:
        """Seconds until the end at the pace so far; `None` while there is too little to go by."""
        elapsed = now - self.started
        if self._overall < ETA_FROM or elapsed < ETA_AFTER_SECONDS:
            return None
        return elapsed * (1 - self._overall) / self._overall
