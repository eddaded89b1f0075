"""Webhooks: create, list, change, rotate the secret, delete; the log of deliveries, and sending again."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.auth.caller import caller_of
from api.deps import CallerDep, ReadingSessionDep, ServicesDep, SessionDep
from api.http import deadline
from api.http.requests import StrictRoute
from api.http.responses import NO_STORE
from api.jobs.webhook_delivery import check_url
from api.schemas.body import ListBody
from api.schemas.webhooks import (
    DeliveriesQuery,
    DeliveryBody,
    NewWebhookRequest,
    RotationRequest,
    WebhookBody,
    WebhookChanges,
    WebhooksQuery,
    WebhookWithSecretBody,
    WholeDeliveryBody,
)
from api.services import Services
from replaceme_core.ledger import webhooks
from replaceme_core.ledger.webhooks import NewWebhook, Webhook
from replaceme_core.webhooks import new_secret

router = APIRouter(tags=["webhooks"], route_class=StrictRoute)

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
