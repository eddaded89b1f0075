"""Webhooks: create, list, change, rotate the secret, delete; the log of deliveries, and sending again."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Self

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import Field
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.bodies import PageQuery
from api.http import deadline
from api.http.callers import caller_of
from api.http.hosts import root_of
from api.http.requests import StrictRoute
from api.http.responses import NO_STORE, UNCHANGED, listed
from api.request_bodies import Events, PayloadField, Url
from api.routes.delivery import check_url
from api.routes.deps import CallerDep, ReadingSessionDep, Services, ServicesDep, SessionDep
from replaceme_core import shapes
from replaceme_core.ledger import webhooks
from replaceme_core.ledger.states import DEFAULT_EVENTS, DeliveryState, Payload
from replaceme_core.ledger.webhooks import NewWebhook, Webhook, WholeDelivery
from replaceme_core.request.fields import Frozen
from replaceme_core.request.fields import Labels as AnyLabels
from replaceme_core.shapes import Page, Shape
from replaceme_core.webhooks import new_secret

Labels = Annotated[AnyLabels, Field(description="only jobs that carry all of these labels")]
router = APIRouter(tags=["webhooks"], route_class=StrictRoute)
DEFAULT_OVERLAP_SECONDS = 86_400
LONGEST_OVERLAP_SECONDS = 604_800


# Bodies and query parameters


class NewWebhookRequest(Frozen):
    """A webhook for all jobs of yours that are submitted or go on from now on."""

    url: Url
    events: Events = DEFAULT_EVENTS
    labels: Labels = Field(default_factory=dict)
    """Only jobs with all of these labels; empty: all jobs."""
    payload: PayloadField = Payload.THIN


class WebhookChanges(Frozen):
    """What is not given stays as it is."""

    url: Url | None = None
    """URL that receives the events."""
    events: Events | None = None
    """Types of events, as in the history of a job."""
    labels: Labels | None = None
    """Only jobs with all of these labels; empty: all jobs."""
    payload: PayloadField | None = None
    """thin: what identifies the event; full: also the job as it was right after it."""
    enabled: bool | None = None
    """Whether messages are sent."""


class RotationRequest(Frozen):
    """How the old secret goes."""

    overlap_seconds: float = Field(default=DEFAULT_OVERLAP_SECONDS, ge=0, le=LONGEST_OVERLAP_SECONDS)
    """Seconds for which the secret before signs as well; 0 revokes it at once."""


class WebhookLinks(Shape):
    self: str
    """The webhook."""
    deliveries: str
    """Its messages."""

    @classmethod
    def at(cls, root: str, webhook_id: str) -> Self:
        here = f"{root}/webhooks/{webhook_id}"
        return cls(self=here, deliveries=f"{here}/deliveries")


class WebhookBody(Webhook):
    """A webhook. Its secret is shown by the requests that make one, and never again."""

    links: WebhookLinks
    """Paths of this API."""


class WebhookWithSecretBody(WebhookBody):
    """A webhook with its new secret."""

    secret: str | None = Field(repr=False)
    """Signs its messages; null: another webhook signs, or the request was a repetition."""


class DeliveryBody(shapes.Delivery):
    """One message to one webhook, with all tries to send it; `id` is its `webhook-id`."""

    state: DeliveryState


class WebhooksQuery(PageQuery):
    job: Annotated[str, Field(pattern="^[!-~]{1,64}$", description="those of this job")] | None = None


class DeliveriesQuery(PageQuery):
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
    created = WebhookWithSecretBody.of(added, links=_links(added, request), secret=secret)
    response.headers["Location"] = created.links.self
    response.headers["Cache-Control"] = NO_STORE
    return created


@router.get("/webhooks", response_model=Page[WebhookBody], responses=UNCHANGED)
def list_webhooks(
    query: Annotated[WebhooksQuery, Query()], session: ReadingSessionDep, caller: CallerDep, request: Request
) -> Response:
    """Your webhooks for all jobs, newest first; with `job`, those of that job."""
    page = webhooks.page(session, owner=caller, job_id=query.job, limit=query.limit, cursor=query.cursor)
    body = Page(items=tuple(_shown(one, request) for one in page.items), next_cursor=page.next_cursor)
    return listed(body, request=request)


@router.get("/webhooks/{webhook_id}")
def get_webhook(webhook_id: str, session: ReadingSessionDep, caller: CallerDep, request: Request) -> WebhookBody:
    """A webhook, without its secret."""
    return _shown(webhooks.get(session, webhook_id, owner=caller), request)


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
    values = body.model_dump(mode="json", exclude={"enabled"}, exclude_none=True)
    values["key_id"] = caller_of(request.scope).key_id

    def change(session: Session) -> Webhook:
        return webhooks.change(session, webhook_id, owner=caller, values=values, enabled=body.enabled)

    changed = await _write_after_check(services, request, body.url, change)
    return _shown(changed, request)


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
    return WebhookWithSecretBody.of(rotated, links=_links(rotated, request), secret=secret)


@router.get("/webhooks/{webhook_id}/deliveries", response_model=Page[DeliveryBody], responses=UNCHANGED)
def list_deliveries(
    webhook_id: str,
    query: Annotated[DeliveriesQuery, Query()],
    session: ReadingSessionDep,
    caller: CallerDep,
    request: Request,
) -> Response:
    """The messages to a webhook and all tries to send them, newest first."""
    page = webhooks.deliveries(
        session, webhook_id, owner=caller, state=query.state, limit=query.limit, cursor=query.cursor
    )
    return listed(Page[DeliveryBody].of(page), request=request)


@router.get("/webhooks/{webhook_id}/deliveries/{delivery_id}")
def get_delivery(webhook_id: str, delivery_id: str, session: ReadingSessionDep, caller: CallerDep) -> WholeDelivery:
    """A message as it is sent. `delivery_id` is its `webhook-id`."""
    return webhooks.delivery(session, webhook_id, delivery_id, owner=caller)


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=HTTPStatus.ACCEPTED)
def redeliver(webhook_id: str, delivery_id: str, session: SessionDep, caller: CallerDep) -> DeliveryBody:
    """Send a message again, with the same id and body. 409 while the webhook is disabled."""
    return DeliveryBody.of(webhooks.redeliver(session, webhook_id, delivery_id, owner=caller))


async def _write_after_check(
    services: Services, request: Request, url: str | None, write: Callable[[Session], Webhook]
) -> Webhook:
    """What `write` returns, in a transaction. The name in `url` is looked up before, without a write slot.

    A look-up may take seconds: each caller has as many threads for them as for reading models.
    """
    if url is not None:
        async with services.planning.slots.hold(caller_of(request.scope).owner):
            await run_in_threadpool(check_url, url, services.settings)

    def in_transaction() -> Webhook:
        with services.database.session() as session:
            written = write(session)
            deadline.check(request.scope)
        return written

    async with services.write_slots.hold(caller_of(request.scope).owner):
        return await run_in_threadpool(in_transaction)


def _shown(webhook: Webhook, request: Request) -> WebhookBody:
    return WebhookBody.of(webhook, links=_links(webhook, request))


def _links(webhook: Webhook, request: Request) -> WebhookLinks:
    return WebhookLinks.at(root_of(request.scope), webhook.id)
