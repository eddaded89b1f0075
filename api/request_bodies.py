"""The request for a job, and for a webhook with it.

Imports no SQLAlchemy, which takes half a second: the command line makes its options of these fields.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Self, TypeVar
from uuid import uuid4

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    model_validator,
)

from replaceme_core.ledger.states import DEFAULT_EVENTS, TYPE_PREFIX, EventType, Payload
from replaceme_core.request.fields import MOST_LABELS, Frozen, Ratio, as_tuple, length, one_of, wrong
from replaceme_core.request.gate import DeepestCut, number_or_deepest
from replaceme_core.request.spec import CompressionRequest
from replaceme_core.validation import Problem, problems
from replaceme_core.webhooks import LONGEST_URL
from replaceme_core.wording import json_safe, shorten

MOST_BYTES = 64 * 1024
"""Of the body of any request."""
Asked = TypeVar("Asked", bound=BaseModel)


@cache
def schema_of(body: Any) -> Mapping[str, object]:
    """The JSON schema of the body of a request, given as the annotation in its route."""
    return TypeAdapter(body).json_schema()


def checked(kind: type[Asked], body: Mapping[str, object]) -> tuple[Asked | None, list[Problem]]:
    """The request of this kind, by the rules of the API; else all that is wrong with it."""
    try:
        return kind.model_validate(body), []
    except ValidationError as error:
        return None, problems(error.errors(), sent=body, schema=schema_of(kind))


def _without_prefix(value: object) -> object:
    """An event may be named as in the history of a job, or as in a message: `job.succeeded`."""
    return value.removeprefix(TYPE_PREFIX) if isinstance(value, str) else value


def _distinct(events: tuple[EventType, ...]) -> tuple[EventType, ...]:
    return tuple(dict.fromkeys(events))


Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LONGEST_URL,
        description="URL that receives the events, https://HOST[:PORT]/PATH, where HOST has public addresses only.",
        examples=["https://hooks.example.com/replaceme"],
        json_schema_extra={"pattern": "^https?://."},
    ),
]
_Event = Annotated[EventType, one_of(EventType), BeforeValidator(_without_prefix)]
Events = Annotated[
    tuple[_Event, ...],
    BeforeValidator(as_tuple),
    AfterValidator(_distinct),
    length(1, 32, description="Types of events, as in the history of a job."),
]
PayloadField = Annotated[
    Payload,
    one_of(Payload),
    Field(description="thin: what identifies the event; full: also the job as it was right after it."),
]
WebhookId = Annotated[str, Field(min_length=1, max_length=64)]


class JobWebhookRequest(Frozen):
    """A webhook for one job. Without `signed_by` it gets a secret of its own, which only this response shows."""

    url: Url
    events: Events = DEFAULT_EVENTS
    payload: PayloadField = Payload.THIN
    signed_by: WebhookId | None = Field(
        default=None,
        description="ID of a webhook for all jobs whose secret signs these messages, in place of a new one.",
    )


SWEEP = "sweep"
"""The label that the jobs of a sweep have in common."""
MOST_RATIOS = 16


def _one_or_several(value: object, _: object) -> object:
    """A list becomes a tuple of numbers; all else is as in a specification. One error, whatever is wrong."""
    if not isinstance(value, list):
        return None if value is None else number_or_deepest(value)
    is_ratio = [isinstance(one, float) and 0 < one < 1 for one in value]
    if not (2 <= len(value) <= MOST_RATIOS and all(is_ratio) and len(set(value)) == len(value)):
        got = shorten(json.dumps(json_safe(value), ensure_ascii=False), 60)
        raise ValueError(f"expected 2 to {MOST_RATIOS} different numbers greater than 0 and less than 1, got {got}")
    return tuple(value)


_Ratios = Annotated[list[Ratio], Field(min_length=2, max_length=MOST_RATIOS, json_schema_extra={"uniqueItems": True})]


class JobRequest(CompressionRequest):
    """A job, and a webhook for it; with a list as `ratio`, a sweep: one such job per ratio."""

    ratio: Annotated[
        float | DeepestCut | tuple[float, ...] | None,
        WrapValidator(_one_or_several, json_schema_input_type=Ratio | DeepestCut | _Ratios | None),
    ] = None  # type: ignore[assignment]  # a specification has one: `each` makes them
    """Fraction of the blocks to remove, between 0 and 1. With a maximum: the deepest cut that passes the gate.

    A list submits one job per ratio. All have the label `sweep`, and results are named after model and job.
    """
    webhook: JobWebhookRequest | None = None
    """A webhook for this job alone."""
    validate_only: bool = Field(default=False, description="Answer with the plan, and queue nothing.")

    @model_validator(mode="after")
    def _jobs_of_a_sweep_differ(self) -> Self:
        if not self.is_sweep:
            return self
        if self.output.repo_id is not None:
            raise wrong("output.repo_id", "each job of a sweep needs a repository of its own: leave it out")
        if SWEEP not in self.labels and len(self.labels) == MOST_LABELS:
            raise wrong("labels", f"a sweep adds the label {SWEEP}: give {MOST_LABELS - 1} others at most")
        return self

    @property
    def is_sweep(self) -> bool:
        """Whether it asks for several jobs."""
        return isinstance(self.ratio, tuple)

    def each(self) -> tuple[Self, ...]:
        """A request per job. Those of a sweep have a label in common, a random one where the request gives none."""
        if not isinstance(self.ratio, tuple):
            return (self,)
        labels = {SWEEP: uuid4().hex[:8], **self.labels}
        return tuple(self.model_copy(update={"ratio": ratio, "labels": labels}) for ratio in self.ratio)
