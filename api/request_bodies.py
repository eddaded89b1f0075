"""The request for a job, and for a webhook with it.

Imports no SQLAlchemy, which takes half a second: the command line makes its options of these fields.
"""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter

from replaceme_core.ledger.states import DEFAULT_EVENTS, TYPE_PREFIX, EventType, Payload
from replaceme_core.request.fields import Frozen, as_tuple, length, one_of
from replaceme_core.request.spec import CompressionRequest
from replaceme_core.webhooks import LONGEST_URL


@cache
def schema_of(body: Any) -> Mapping[str, object]:
    """The JSON schema of the body of a request, given as the annotation in its route."""
    return TypeAdapter(body).json_schema()


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


class JobRequest(CompressionRequest):
    """A job, and a webhook for it."""

    webhook: JobWebhookRequest | None = None
    """A webhook for this job alone."""
    validate_only: bool = Field(default=False, description="Answer with the plan, and queue nothing.")
