"""Metrics of a job."""

from datetime import datetime
from typing import Self

from api.schemas.body import Body
from replaceme_core.jobs.records import Metric
from replaceme_core.runner.messages import Stage


class MetricBody(Body):
    """One measured value of a job's current attempt."""

    name: str
    stage: Stage
    block: int | None
    candidate: str | None
    value: float
    unit: str
    at: datetime

    @classmethod
    def of(cls, metric: Metric) -> Self:
        return cls(
            name=metric.name,
            stage=metric.stage,
            block=metric.block,
            candidate=metric.candidate,
            value=metric.value,
            unit=metric.unit,
            at=metric.at,
        )
