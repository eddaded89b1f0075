"""Metrics of a job."""

from datetime import datetime
from typing import Self

from pydantic import Field

from api.schemas.body import Body
from replaceme_core.jobs.records import Metric
from replaceme_core.runner.messages import Stage

_NAMES = (
    "`after.blocks`, `after.bytes`, `after.distinct_4grams`, `after.looping_answers`, `after.parameters`, "
    "`after.perplexity`, `after.text_perplexity`, `after.tokens_per_second`, `batch_halvings`, "
    "`before.blocks`, `before.bytes`, `before.distinct_4grams`, `before.looping_answers`, "
    "`before.parameters`, `before.perplexity`, `before.text_perplexity`, `before.tokens_per_second`, "
    "`cache_difference`, `choice_tokens`, `chosen`, `cosine_loss`, `cosine_loss_before`, `dense_block_runs`, "
    "`dense_held_out_loss`, `distance`, `estimated`, `final_scale`, `gate_max`, `gate_min`, `gate_passed`, "
    "`gate_value`, `held_out_loss`, `held_out_score`, `influence`, `modelled_seconds`, `peak_memory`, "
    "`plain_held_out_loss`, `residual`, `residual_check_error`, "
    "`result_held_out_loss`, `seconds`, `shards`, `sink_tokens`, `statistics_bytes`, `stream_bytes`, "
    "`text_agreement`, `text_divergence`, `tokens`, `unscaled_held_out_loss`"
)
"""What each of them means is in docs/reference/http.md; a later release may add names."""


class MetricBody(Body):
    """One measured value of a job's current attempt."""

    name: str = Field(description=f"one of {_NAMES}; a later release may add others")
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
