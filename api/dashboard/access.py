"""API keys and webhooks: what there is, and forms that make, replace and end one. A secret is shown once."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.bodies import KeyId, KeyRequest, KeyRotationRequest, PageQuery
from api.dashboard.middleware import FormDep, ticked
from api.dashboard.new_job import read_labels
from api.dashboard.rendering import page, see
from api.request_bodies import Asked, checked
from api.routes.deps import CallerDep, KeysDep, ReadingSessionDep, Services, ServicesDep, SessionDep
from api.routes.webhooks import NewWebhookRequest, WebhookChanges, change_webhook, create_webhook, rotate_secret
from replaceme_core.errors import InvalidInput
from replaceme_core.ledger import webhooks
from replaceme_core.ledger.database import LedgerSession
from replaceme_core.ledger.keys import CreatedKey, Keys, Scope
from replaceme_core.ledger.states import DEFAULT_EVENTS, EventType, Payload

router = APIRouter()

ON_A_PAGE = 50
_SHOWN_DELIVERIES = 20
_DAY = 86_400
_LIFETIMES = {"": "Never", str(30 * _DAY): "In 30 days", str(90 * _DAY): "In 90 days", str(365 * _DAY): "In a year"}
Errors = dict[str, str]
"""What is wrong, by the field of the form."""


def read(kind: type[Asked], body: Mapping[str, object]) -> tuple[Asked | None, Errors]:
    """The request, by the rules of the API; else what is wrong with it."""
    asked, found = checked(kind, body)
    return asked, {one["field"].partition(".")[0]: one["message"] for one in reversed(found)}


# API keys


@router.get("/ui/keys")
def show_keys(query: Annotated[PageQuery, Query()], session: ReadingSessionDep, request: Request) -> Response:
    return _keys(session, request, cursor=query.cursor)


@router.post("/ui/keys")
def create_key(form: FormDep, keys: KeysDep, session: SessionDep, caller: CallerDep, request: Request) -> Response:
    lifetime = form.get("expires", "")
    body: dict[str, object] = {"name": form.get("name", "").strip(), "scopes": ticked(form, "scopes")}
    body |= {"owner": form["owner"].strip()} if form.get("owner", "").strip() else {}
    body |= {"expires_in_seconds": int(lifetime)} if lifetime in _LIFETIMES and lifetime else {}
    asked, errors = read(KeyRequest, body)
    made = None if asked is None else keys.create(asked.to_new(owner=caller))
    return _keys(session, request, made=made, errors=errors, given={} if made else {**form, **body})


@router.post("/ui/keys/{key_id}/{action}")
def change_key(
    key_id: KeyId, action: Literal["revoke", "rotate"], keys: KeysDep, session: SessionDep, request: Request
) -> Response:
    if action == "revoke":
        keys.revoke(key_id)
        return see("/ui/keys", request.scope)
    made = keys.rotate(key_id, overlap_seconds=KeyRotationRequest().overlap_seconds)
    return _keys(session, request, made=made)


def _keys(
    session: LedgerSession,
    request: Request,
    *,
    cursor: str | None = None,
    made: CreatedKey | None = None,
    errors: Errors | None = None,
    given: Mapping[str, object] | None = None,
) -> Response:
    found = Keys(session).page(limit=ON_A_PAGE, cursor=cursor)
    return page(
        "keys.html",
        request.scope,
        status=HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK,
        keys=found.items,
        next_cursor=found.next_cursor,
        made=made,
        errors=errors or {},
        given=given or {"scopes": [Scope.JOBS_READ, Scope.JOBS_WRITE]},
        scopes=list(Scope),
        lifetimes=_LIFETIMES,
    )


# Webhooks


@router.get("/ui/webhooks")
def show_webhooks(
    query: Annotated[PageQuery, Query()], services: ServicesDep, caller: CallerDep, request: Request
) -> Response:
    return _webhooks(services, caller, request, cursor=query.cursor)


@router.post("/ui/webhooks")
async def add_webhook(form: FormDep, services: ServicesDep, caller: CallerDep, request: Request) -> Response:
    body = {name: form.get(name, "").strip() for name in ("url", "payload")}
    labels, unread = read_labels(form.get("labels", ""))
    whole: dict[str, object] = {**body, "labels": labels, "events": ticked(form, "events")}
    asked, errors = read(NewWebhookRequest, whole)
    if unread:
        errors["labels"] = unread
    if asked is not None:
        try:
            made = await create_webhook(asked, services, caller, request, Response())
            return await run_in_threadpool(_webhook, services, made.id, caller, request, secret=made.secret)
        except InvalidInput as error:  # a name that has no public address; no key to encrypt its secret
            errors = {"url": error.message}
    return await run_in_threadpool(_webhooks, services, caller, request, errors=errors, given={**whole, **form})


def _webhooks(
    services: Services,
    owner: str,
    request: Request,
    *,
    cursor: str | None = None,
    errors: Errors | None = None,
    given: Mapping[str, object] | None = None,
) -> Response:
    with services.database.session(read_only=True) as session:
        found = webhooks.page(session, owner=owner, limit=ON_A_PAGE, cursor=cursor)
    return page(
        "webhooks.html",
        request.scope,
        status=HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK,
        webhooks=found.items,
        next_cursor=found.next_cursor,
        errors=errors or {},
        given=given or {"events": DEFAULT_EVENTS},
        events=list(EventType),
        payloads=list(Payload),
    )


@router.get("/ui/webhooks/{webhook_id}")
def show_webhook(webhook_id: str, services: ServicesDep, caller: CallerDep, request: Request) -> Response:
    return _webhook(services, webhook_id, caller, request)


@router.post("/ui/webhooks/{webhook_id}/{action}")
async def change(
    webhook_id: str,
    action: Literal["enable", "disable", "rotate", "delete"],
    services: ServicesDep,
    caller: CallerDep,
    request: Request,
) -> Response:
    """The page of the webhook, or that of all once it is deleted. A new secret is on the page once."""

    def write() -> Response:
        with services.database.session() as session:
            if action == "delete":
                webhooks.remove(session, webhook_id, owner=caller)
                return see("/ui/webhooks", request.scope)
            secret = rotate_secret(webhook_id, services, session, caller, request, Response()).secret
        return _webhook(services, webhook_id, caller, request, secret=secret)

    if action in ("delete", "rotate"):
        return await run_in_threadpool(write)
    await change_webhook(webhook_id, WebhookChanges(enabled=action == "enable"), services, caller, request)
    return see(f"/ui/webhooks/{webhook_id}", request.scope)


@router.post("/ui/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver")
def redeliver(webhook_id: str, delivery_id: str, session: SessionDep, caller: CallerDep, request: Request) -> Response:
    webhooks.redeliver(session, webhook_id, delivery_id, owner=caller)
    return see(f"/ui/webhooks/{webhook_id}", request.scope)


def _webhook(
    services: Services, webhook_id: str, owner: str, request: Request, *, secret: str | None = None
) -> Response:
    with services.database.session(read_only=True) as session:
        found = webhooks.get(session, webhook_id, owner=owner)
        sent = webhooks.deliveries(session, webhook_id, owner=owner, limit=_SHOWN_DELIVERIES)
    return page("webhook.html", request.scope, webhook=found, deliveries=sent.items, secret=secret)
