"""Requests about webhooks and their deliveries."""

from collections.abc import Mapping, Sequence

from api.client.models import Delivery, Page, Webhook, WholeDelivery
from api.client.requests.request import Request, given, path_of


def create(
    url: str, *, events: Sequence[str] | None, labels: Mapping[str, str] | None, payload: str | None
) -> Request[Webhook]:
    body = given(url=url, events=events, labels=labels, payload=payload)
    return Request.of(Webhook, "POST", "/webhooks", body=body)


def page(*, job_id: str | None, limit: int | None, cursor: str | None) -> Request[Page[Webhook]]:
    return Request.of(Page[Webhook], "GET", "/webhooks", query=[("job", job_id), ("limit", limit), ("cursor", cursor)])


def get(webhook_id: str) -> Request[Webhook]:
    return Request.of(Webhook, "GET", path_of("webhooks", webhook_id))


def update(webhook_id: str, **changes: object) -> Request[Webhook]:
    return Request.of(Webhook, "PATCH", path_of("webhooks", webhook_id), body=given(**changes))


def delete(webhook_id: str) -> Request[None]:
    return Request.of(None, "DELETE", path_of("webhooks", webhook_id))


def rotate(webhook_id: str, *, overlap_seconds: float | None) -> Request[Webhook]:
    body = given(overlap_seconds=overlap_seconds)
    return Request.of(Webhook, "POST", path_of("webhooks", webhook_id, "rotate"), body=body)


def deliveries(webhook_id: str, *, state: str | None, limit: int | None, cursor: str | None) -> Request[Page[Delivery]]:
    query = [("state", state), ("limit", limit), ("cursor", cursor)]
    return Request.of(Page[Delivery], "GET", path_of("webhooks", webhook_id, "deliveries"), query=query)


def delivery(webhook_id: str, delivery_id: str) -> Request[WholeDelivery]:
    return Request.of(WholeDelivery, "GET", path_of("webhooks", webhook_id, "deliveries", delivery_id))


def redeliver(webhook_id: str, delivery_id: str) -> Request[Delivery]:
    return Request.of(Delivery, "POST", path_of("webhooks", webhook_id, "deliveries", delivery_id, "redeliver"))
