"""Webhooks of a caller, as methods of `Client.webhooks`."""

from collections.abc import Mapping, Sequence

from api.client.connection import Connection
from api.client.models import Delivery, Page, Webhook, WholeDelivery
from api.client.requests import webhooks as requests


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
        return self._connection.send(requests.create(url, events=events, labels=labels, payload=payload))

    def page(self, *, job_id: str | None = None, limit: int | None = None, cursor: str | None = None) -> Page[Webhook]:
        """Standing webhooks, or those of a job, newest first."""
        return self._connection.send(requests.page(job_id=job_id, limit=limit, cursor=cursor))

    def get(self, webhook_id: str) -> Webhook:
        return self._connection.send(requests.get(webhook_id))

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
        return self._connection.send(
            requests.update(webhook_id, url=url, events=events, labels=labels, payload=payload, enabled=enabled)
        )

    def delete(self, webhook_id: str) -> None:
        self._connection.send(requests.delete(webhook_id))

    def rotate(self, webhook_id: str, *, overlap_seconds: float | None = None) -> Webhook:
        """A new `secret`, which is in this response only. The old one also signs for `overlap_seconds` (a day)."""
        return self._connection.send(requests.rotate(webhook_id, overlap_seconds=overlap_seconds))

    def deliveries(
        self, webhook_id: str, *, state: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[Delivery]:
        """The messages to a webhook, newest first."""
        return self._connection.send(requests.deliveries(webhook_id, state=state, limit=limit, cursor=cursor))

    def delivery(self, webhook_id: str, delivery_id: str) -> WholeDelivery:
        """One message with its body."""
        return self._connection.send(requests.delivery(webhook_id, delivery_id))

    def redeliver(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a message again, with the same id and body."""
        return self._connection.send(requests.redeliver(webhook_id, delivery_id))
