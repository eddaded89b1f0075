"""Webhooks of a caller, as methods of `AsyncClient.webhooks`; see `webhooks.py`."""

from collections.abc import Mapping, Sequence

from api.client.async_connection import AsyncConnection
from api.client.models import Delivery, Page, Webhook, WholeDelivery
from api.client.requests import webhooks as requests


class AsyncWebhooksClient:
    """Calls on `/webhooks`. All methods raise `api.client.errors.ServiceError`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(
        self,
        url: str,
        *,
        events: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        payload: str | None = None,
    ) -> Webhook:
        """A standing webhook. `secret` is in this response only."""
        return await self._connection.send(requests.create(url, events=events, labels=labels, payload=payload))

    async def page(
        self, *, job_id: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[Webhook]:
        """Standing webhooks, or those of a job, newest first."""
        return await self._connection.send(requests.page(job_id=job_id, limit=limit, cursor=cursor))

    async def get(self, webhook_id: str) -> Webhook:
        return await self._connection.send(requests.get(webhook_id))

    async def update(
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
        return await self._connection.send(
            requests.update(webhook_id, url=url, events=events, labels=labels, payload=payload, enabled=enabled)
        )

    async def delete(self, webhook_id: str) -> None:
        await self._connection.send(requests.delete(webhook_id))

    async def rotate(self, webhook_id: str, *, overlap_seconds: float | None = None) -> Webhook:
        """A new `secret`, which is in this response only. The old one also signs for `overlap_seconds` (a day)."""
        return await self._connection.send(requests.rotate(webhook_id, overlap_seconds=overlap_seconds))

    async def deliveries(
        self, webhook_id: str, *, state: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[Delivery]:
        """The messages to a webhook, newest first."""
        return await self._connection.send(requests.deliveries(webhook_id, state=state, limit=limit, cursor=cursor))

    async def delivery(self, webhook_id: str, delivery_id: str) -> WholeDelivery:
        """One message with its body."""
        return await self._connection.send(requests.delivery(webhook_id, delivery_id))

    async def redeliver(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a message again, with the same id and body."""
        return await self._connection.send(requests.redeliver(webhook_id, delivery_id))
