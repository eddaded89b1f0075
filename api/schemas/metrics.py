"""Metrics of a job."""

from datetime import datetime
from typing import Self

from pydantic import Field

from api.schemas.body import Body
from replaceme_core.ledger.records import Metric
from replaceme_core.report.view import QUANTITIES
from replaceme_core.runner.messages import Stage

_OF_A_MODEL = ("decode_spread", "prefill_spread", "task_accuracy", "text_perplexity", *(one.name for one in QUANTITIES))
_OTHERS = (
    "`batch_halvings`, `cache_difference`, `choice_tokens`, `chosen`, `cosine_loss`, `cosine_loss_before`, "
    "`dense_block_runs`, `dense_held_out_loss`, `distance`, `estimated`, `final_scale`, `gate_max`, `gate_min`, "
    "`gate_passed`, `gate_value`, `held_out_loss`, `held_out_score`, `influence`, `modelled_seconds`, `peak_memory`, "
    "`plain_held_out_loss`, `residual`, `residual_check_error`, `result_held_out_loss`, `seconds`, `sink_tokens`, "
    "`statistics_bytes`, `stream_bytes`, `task_kept`, `text_agreement`, `text_divergence`, `text_ratio_high`, "
    "`text_ratio_low`, `tokens`, `trial_met`, `trial_passed`, `trial_seconds`, `trial_value`, "
    "`unscaled_held_out_loss`"
)
_OF_BOTH = sorted(f"`{side}.{name}`" for side in ("before", "after") for name in _OF_A_MODEL)
_NAMES = f"{', '.join(_OF_BOTH)}, {_OTHERS}"
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
