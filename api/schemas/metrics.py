"""Metrics of a job."""

from datetime import datetime
from typing import Self

from pydantic import Field

from api.schemas.body import Body
from replaceme_core.ledger.records import Metric
from replaceme_core.runner.messages import Stage

_NAMES = (
    "`after.blocks`, `after.byte_perplexity`, `after.bytes`, `after.cache_bytes_per_token`, `after.decode_spread`, "
    "`after.decode_tokens_per_second`, `after.distinct_4grams`, `after.looping_answers`, `after.parameters`, "
    "`after.peak_bytes`, `after.perplexity`, `after.prefill_spread`, `after.prefill_tokens_per_second`, "
    "`after.task_accuracy`, `before.task_accuracy`, `task_kept`, "
    "`after.text_perplexity`, `after.tokens_per_second`, `after.word_perplexity`, `batch_halvings`, "
    "`before.blocks`, `before.byte_perplexity`, `before.bytes`, `before.cache_bytes_per_token`, "
    "`before.decode_spread`, `before.decode_tokens_per_second`, `before.distinct_4grams`, `before.looping_answers`, "
    "`before.parameters`, `before.peak_bytes`, `before.perplexity`, `before.prefill_spread`, "
    "`before.prefill_tokens_per_second`, `before.text_perplexity`, `before.tokens_per_second`, "
    "`before.word_perplexity`, "
    "`cache_difference`, `choice_tokens`, `chosen`, `cosine_loss`, `cosine_loss_before`, `dense_block_runs`, "
    "`dense_held_out_loss`, `distance`, `estimated`, `final_scale`, `gate_max`, `gate_min`, `gate_passed`, "
    "`gate_value`, `held_out_loss`, `held_out_score`, `influence`, `modelled_seconds`, `peak_memory`, "
    "`plain_held_out_loss`, `residual`, `residual_check_error`, "
    "`result_held_out_loss`, `seconds`, `sink_tokens`, `statistics_bytes`, `stream_bytes`, "
    "`text_agreement`, `text_divergence`, `text_ratio_high`, `text_ratio_low`, `tokens`, `trial_met`, "
    "`trial_passed`, `trial_seconds`, `trial_value`, `unscaled_held_out_loss`"
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
