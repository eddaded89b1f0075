"""Webhooks, their deliveries, and the field `webhook` of a request."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field

from api.schemas.body import Body, Query
from replaceme_core.ledger.states import DEFAULT_EVENTS, DeliveryState, DisabledBy, EventType, Payload
from replaceme_core.ledger.webhooks import TYPE_PREFIX, Delivery, Try, Webhook
from replaceme_core.request.fields import Frozen, as_tuple, length, one_of
from replaceme_core.request.fields import Labels as AnyLabels
from replaceme_core.webhooks import LONGEST_URL

DEFAULT_OVERLAP_SECONDS = 86_400
LONGEST_OVERLAP_SECONDS = 604_800


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
        description="https://HOST[:PORT]/PATH, where HOST has public addresses only",
        examples=["https://hooks.example.com/replaceme"],
        json_schema_extra={"pattern": "^https?://."},
    ),
]
_Event = Annotated[EventType, one_of(EventType), BeforeValidator(_without_prefix)]
Events = Annotated[
    tuple[_Event, ...],
    BeforeValidator(as_tuple),
    AfterValidator(_distinct),
    length(1, 32, description="types of events, as in the history of a job"),
]
PayloadField = Annotated[
    Payload,
    one_of(Payload),
    Field(description="thin: what identifies the event; full: also the job as it was right after it"),
]
Labels = Annotated[AnyLabels, Field(description="only jobs that carry all of these labels")]
WebhookId = Annotated[str, Field(min_length=1, max_length=64)]


class JobWebhookRequest(Frozen):
    """A webhook for one job. Without `signed_by` it gets a secret of its own, which only this response shows."""

    url: Url
    events: Events = DEFAULT_EVENTS
    payload: PayloadField = Payload.THIN
    signed_by: WebhookId | None = Field(
        default=None, description="the id of a standing webhook of yours, whose secret signs these messages too"
    )


class NewWebhookRequest(Frozen):
    """A standing webhook, for all jobs of yours that are submitted or go on from now on."""

    url: Url
    events: Events = DEFAULT_EVENTS
    labels: Labels = Field(default_factory=dict)
    payload: PayloadField = Payload.THIN


class WebhookChanges(Frozen):
    """What is not given stays as it is."""

    url: Url | None = None
    events: Events | None = None
    labels: Labels | None = None
    payload: PayloadField | None = None
    enabled: bool | None = None

    def values(self) -> dict[str, object]:
        """The columns to set."""
        given: dict[str, object] = {"url": self.url, "labels": self.labels, "payload": self.payload}
        given["events"] = None if self.events is None else [event.value for event in self.events]
        return {name: value for name, value in given.items() if value is not None}


class RotationRequest(Frozen):
    """`overlap_seconds`: how long the secret before signs as well; 0 revokes it at once."""

    overlap_seconds: float = Field(default=DEFAULT_OVERLAP_SECONDS, ge=0, le=LONGEST_OVERLAP_SECONDS)


class WebhookLinks(Body):
    self: str
    deliveries: str


class WebhookBody(Body):
    """A webhook. Its secret is shown by the requests that make one, and never again."""

    id: str
    url: str
    events: tuple[EventType, ...]
    labels: dict[str, str]
    payload: Payload
    enabled: bool
    disabled_by: DisabledBy | None
    disabled_at: datetime | None
    job_id: str | None
    signed_by: str | None
    key_id: str | None
    previous_secret_expires_at: datetime | None
    created_at: datetime
    links: WebhookLinks

    @classmethod
    def of(cls, webhook: Webhook, *, root: str, **more: object) -> Self:
        here = f"{root}/webhooks/{webhook.id}"
        return cls(
            **more,
            id=webhook.id,
            url=webhook.url,
            events=webhook.events,
            labels=dict(webhook.labels),
            payload=webhook.payload,
            enabled=webhook.disabled_at is None,
            disabled_by=webhook.disabled_by,
            disabled_at=webhook.disabled_at,
            job_id=webhook.job_id,
            signed_by=webhook.signed_by,
            key_id=webhook.key_id,
            previous_secret_expires_at=webhook.previous_expires_at,
            created_at=webhook.created_at,
            links=WebhookLinks(self=here, deliveries=f"{here}/deliveries"),
        )


class WebhookWithSecretBody(WebhookBody):
    """A webhook with its new secret; null if another webhook signs for it, or if the request is a repetition."""

    secret: str | None


class TryBody(Body):
    """One try to send a message. `status` is null where no response came, `error` where all is well."""

    number: int
    at: datetime
    status: int | None
    error: str | None
    seconds: float

    @classmethod
    def of(cls, one: Try) -> Self:
        return cls(number=one.number, at=one.at, status=one.status, error=one.error, seconds=round(one.seconds, 3))


class DeliveryBody(Body):
    """One message to one webhook. `id` is its `webhook-id`."""

    id: str
    type: str
    job_id: str
    seq: int
    state: DeliveryState
    created_at: datetime
    next_try_at: datetime | None
    finished_at: datetime | None
    tries: list[TryBody]

    @classmethod
    def of(cls, delivery: Delivery, **more: object) -> Self:
        return cls(
            **more,
            id=delivery.message_id,
            type=f"{TYPE_PREFIX}{delivery.type}",
            job_id=delivery.job_id,
            seq=delivery.seq,
            state=delivery.state,
            created_at=delivery.created_at,
            next_try_at=delivery.next_try_at,
            finished_at=delivery.finished_at,
            tries=[TryBody.of(one) for one in delivery.tries],
        )


class WholeDeliveryBody(DeliveryBody):
    """With what is sent, to the byte."""

    body: str


class WebhooksQuery(Query):
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    job: Annotated[str, Field(min_length=1, max_length=64, description="those of this job")] | None = None


class DeliveriesQuery(Query):
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    state: DeliveryState | None = None
