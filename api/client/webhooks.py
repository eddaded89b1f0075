"""Webhooks of a caller, as methods of `Client.webhooks`."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from api.client.connection import Connection, QueryParameters
from api.client.models import Delivery, Page, Webhook, WholeDelivery


class WebhooksClient:
    """Calls on `/webhooks`. All methods raise `api.client.errors.ServiceError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(
        self,
        url: str,
        *,
        events: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        payload: str | None = None,
    ) -> Webhook:
        """A standing webhook. `secret` is in this response only."""
        body = _given(url=url, events=events, labels=labels, payload=payload)
        return self._connection.request(Webhook, "POST", "/webhooks", body=body)

    def page(self, *, job_id: str | None = None, limit: int | None = None, cursor: str | None = None) -> Page[Webhook]:
        """Standing webhooks, or those of a job, newest first."""
        query = _query(job=job_id, limit=limit, cursor=cursor)
        return self._connection.request(Page[Webhook], "GET", "/webhooks", query=query)

    def get(self, webhook_id: str) -> Webhook:
        return self._connection.request(Webhook, "GET", _path(webhook_id))

    def update(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        payload: str | None = None,
        enabled: bool | None = None,
    ) -> Webhook:
        """Change what is given."""
        body = _given(url=url, events=events, labels=labels, payload=payload, enabled=enabled)
        return self._connection.request(Webhook, "PATCH", _path(webhook_id), body=body)

    def delete(self, webhook_id: str) -> None:
        self._connection.request_nothing("DELETE", _path(webhook_id))

    def rotate(self, webhook_id: str, *, overlap_seconds: float | None = None) -> Webhook:
        """A new `secret`, which is in this response only. The old one also signs for `overlap_seconds` (a day)."""
        body = _given(overlap_seconds=overlap_seconds)
        return self._connection.request(Webhook, "POST", _path(webhook_id, "rotate"), body=body)

    def deliveries(
        self, webhook_id: str, *, state: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[Delivery]:
        """The messages to a webhook, newest first."""
        query = _query(state=state, limit=limit, cursor=cursor)
        return self._connection.request(Page[Delivery], "GET", _path(webhook_id, "deliveries"), query=query)

    def delivery(self, webhook_id: str, delivery_id: str) -> WholeDelivery:
        """One message with its body."""
        return self._connection.request(WholeDelivery, "GET", _path(webhook_id, "deliveries", delivery_id))

    def redeliver(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a message again, with the same id and body."""
        path = _path(webhook_id, "deliveries", delivery_id, "redeliver")
        return self._connection.request(Delivery, "POST", path)


def _given(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _query(**fields: str | int | None) -> QueryParameters:
    return [(name, value) for name, value in fields.items() if value is not None]


def _path(*parts: str) -> str:
    return "/".join(["/webhooks", *(quote(part, safe="") for part in parts)])
