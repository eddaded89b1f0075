"""Webhooks: create, list, change, rotate the secret, delete; the log of deliveries, and sending again."""

from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Self

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import Field
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.bodies import Events, Labels, ListBody, Parameters, PayloadField, ResponseBody, Url
from api.http import deadline
from api.http.callers import caller_of
from api.http.requests import StrictRoute
from api.http.responses import NO_STORE
from api.routes.delivery import check_url
from api.routes.deps import CallerDep, ReadingSessionDep, Services, ServicesDep, SessionDep
from replaceme_core.ledger import webhooks
from replaceme_core.ledger.states import DEFAULT_EVENTS, DeliveryState, DisabledBy, EventType, Payload
from replaceme_core.ledger.webhooks import TYPE_PREFIX, Delivery, NewWebhook, Try, Webhook
from replaceme_core.request.fields import Frozen
from replaceme_core.webhooks import new_secret

router = APIRouter(tags=["webhooks"], route_class=StrictRoute)
DEFAULT_OVERLAP_SECONDS = 86_400
LONGEST_OVERLAP_SECONDS = 604_800


# Bodies and query parameters


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


class WebhookLinks(ResponseBody):
    self: str
    deliveries: str


class WebhookBody(ResponseBody):
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


class TryBody(ResponseBody):
    """One try to send a message. `status` is null where no response came, `error` where all is well."""

    number: int
    at: datetime
    status: int | None
    error: str | None
    seconds: float

    @classmethod
    def of(cls, one: Try) -> Self:
        return cls(number=one.number, at=one.at, status=one.status, error=one.error, seconds=round(one.seconds, 3))


class DeliveryBody(ResponseBody):
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


class WebhooksQuery(Parameters):
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    job: Annotated[str, Field(min_length=1, max_length=64, description="those of this job")] | None = None


class DeliveriesQuery(Parameters):
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    state: DeliveryState | None = None


# Routes

_ROTATION = RotationRequest()
_EXAMPLE = {"url": "https://hooks.example.com/replaceme", "events": ["succeeded", "failed"], "labels": {"team": "nlp"}}


@router.post("/webhooks", status_code=HTTPStatus.CREATED)
async def create_webhook(
    body: Annotated[NewWebhookRequest, Body(examples=[_EXAMPLE])],
    services: ServicesDep,
    caller: CallerDep,
    request: Request,
    response: Response,
) -> WebhookWithSecretBody:
    """Receive the events of your jobs at a URL. The secret that signs the messages is in this response only."""
    secret = new_secret()

    def add(session: Session) -> Webhook:
        new = NewWebhook(
            url=body.url,
            secret=services.secrets_box.seal(secret, field="webhook"),
            events=body.events,
            labels=body.labels,
            payload=body.payload,
            key_id=caller_of(request.scope).key_id,
        )
        return webhooks.add(session, new, owner=caller)

    added = await _write_after_check(services, request, body.url, add)
    created = WebhookWithSecretBody.of(added, root=_root(request), secret=secret)
    response.headers["Location"] = created.links.self
    response.headers["Cache-Control"] = NO_STORE
    return created


@router.get("/webhooks")
def list_webhooks(
    query: Annotated[WebhooksQuery, Query()], session: ReadingSessionDep, caller: CallerDep, request: Request
) -> ListBody[WebhookBody]:
    """Your standing webhooks, newest first; with `job`, those of that job."""
    page = webhooks.page(session, owner=caller, job_id=query.job, limit=query.limit, cursor=query.cursor)
    items = [WebhookBody.of(webhook, root=_root(request)) for webhook in page.items]
    return ListBody(items=items, next_cursor=page.next_cursor)


@router.get("/webhooks/{webhook_id}")
def get_webhook(webhook_id: str, session: ReadingSessionDep, caller: CallerDep, request: Request) -> WebhookBody:
    """A webhook, without its secret."""
    return WebhookBody.of(webhooks.get(session, webhook_id, owner=caller), root=_root(request))


@router.patch("/webhooks/{webhook_id}")
async def change_webhook(
    webhook_id: str,
    body: Annotated[WebhookChanges, Body(examples=[{"enabled": True}])],
    services: ServicesDep,
    caller: CallerDep,
    request: Request,
) -> WebhookBody:
    """Change some fields. `enabled` false ends what is still to be sent, true also undoes a 410 of the receiver.

    From then on it is a webhook of the key of this request, and ends with that key.
    """
    values = {**body.values(), "key_id": caller_of(request.scope).key_id}

    def change(session: Session) -> Webhook:
        return webhooks.change(session, webhook_id, owner=caller, values=values, enabled=body.enabled)

    changed = await _write_after_check(services, request, body.url, change)
    return WebhookBody.of(changed, root=_root(request))


@router.delete("/webhooks/{webhook_id}", status_code=HTTPStatus.NO_CONTENT)
def delete_webhook(webhook_id: str, session: SessionDep, caller: CallerDep) -> None:
    """Delete a webhook with its log. Nothing more is sent."""
    webhooks.remove(session, webhook_id, owner=caller)


@router.post("/webhooks/{webhook_id}/rotate")
def rotate_secret(
    webhook_id: str,
    services: ServicesDep,
    session: SessionDep,
    caller: CallerDep,
    request: Request,
    response: Response,
    body: Annotated[RotationRequest, Body(examples=[{"overlap_seconds": 3600}])] = _ROTATION,
) -> WebhookWithSecretBody:
    """Make a new secret, shown in this response only. Both secrets sign until `overlap_seconds` are over."""
    secret = new_secret()
    response.headers["Cache-Control"] = NO_STORE
    rotated = webhooks.rotate(
        session,
        webhook_id,
        owner=caller,
        secret=services.secrets_box.seal(secret, field="webhook"),
        overlap_seconds=body.overlap_seconds,
    )
    return WebhookWithSecretBody.of(rotated, root=_root(request), secret=secret)


@router.get("/webhooks/{webhook_id}/deliveries")
def list_deliveries(
    webhook_id: str, query: Annotated[DeliveriesQuery, Query()], session: ReadingSessionDep, caller: CallerDep
) -> ListBody[DeliveryBody]:
    """The messages to a webhook and all tries to send them, newest first."""
    page = webhooks.deliveries(
        session, webhook_id, owner=caller, state=query.state, limit=query.limit, cursor=query.cursor
    )
    return ListBody(items=[DeliveryBody.of(delivery) for delivery in page.items], next_cursor=page.next_cursor)


@router.get("/webhooks/{webhook_id}/deliveries/{delivery_id}")
def get_delivery(webhook_id: str, delivery_id: str, session: ReadingSessionDep, caller: CallerDep) -> WholeDeliveryBody:
    """A message as it is sent. `delivery_id` is its `webhook-id`."""
    delivery = webhooks.delivery(session, webhook_id, delivery_id, owner=caller)
    return WholeDeliveryBody.of(delivery, body=delivery.body)


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=HTTPStatus.ACCEPTED)
def redeliver(webhook_id: str, delivery_id: str, session: SessionDep, caller: CallerDep) -> DeliveryBody:
    """Send a message again, with the same id and body. 409 while the webhook is disabled."""
    return DeliveryBody.of(webhooks.redeliver(session, webhook_id, delivery_id, owner=caller))


async def _write_after_check(
    services: Services, request: Request, url: str | None, write: Callable[[Session], Webhook]
) -> Webhook:
    """What `write` returns, in a transaction. The name in `url` is looked up before, without a write slot."""
    if url is not None:
        await run_in_threadpool(check_url, url, services.settings)

    def in_transaction() -> Webhook:
        with services.database.session() as session:
            written = write(session)
            deadline.check(request.scope)
        return written

    async with services.write_slots:
        return await run_in_threadpool(in_transaction)


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")
