"""All SQL of webhooks, as methods of `Webhooks`. One `Webhooks` lives within one transaction.

The messages themselves are written by `outbox.py`, with each event of a job.
"""

from collections.abc import Mapping

from sqlalchemy.orm import Session

from replaceme_core.ledger.records import Page
from replaceme_core.ledger.webhooks import deliveries, registry
from replaceme_core.ledger.webhooks.records import ClaimedDelivery, Delivery, NewWebhook, Webhook
from replaceme_core.ledger.webhooks.states import DeliveryState


class Webhooks:
    """Webhooks and their deliveries within one transaction. What belongs to another owner is `NotFound`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # Webhooks

    def add(self, new: NewWebhook, *, owner: str, job_id: str | None = None) -> Webhook:
        """Add a standing webhook, or one of a job. Raises `Conflict` above the limit, `NotFound` (`signed_by`)."""
        return registry.add(self._session, new, owner=owner, job_id=job_id)

    def copy_of_job(self, job_id: str, *, owner: str, new_job_id: str) -> Webhook | None:
        """The webhook of a job, with its secrets, for another job too; `None` if it has none that is enabled."""
        return registry.copy_of_job(self._session, job_id, owner=owner, new_job_id=new_job_id)

    def get(self, webhook_id: str, *, owner: str) -> Webhook:
        """Raises `NotFound`."""
        return registry.to_webhook(registry.find(self._session, webhook_id, owner=owner))

    def page(self, *, owner: str, limit: int, job_id: str | None = None, cursor: str | None = None) -> Page[Webhook]:
        """The newest first: the standing ones, or those of a job. Raises `InvalidInput` (cursor)."""
        return registry.page(self._session, owner=owner, job_id=job_id, limit=limit, cursor=cursor)

    def change(
        self, webhook_id: str, *, owner: str, values: Mapping[str, object], enabled: bool | None = None
    ) -> Webhook:
        """Set columns of what it is made of. Raises `NotFound`. Disabling ends what is pending."""
        return registry.change(self._session, webhook_id, owner=owner, values=values, enabled=enabled)

    def rotate(self, webhook_id: str, *, owner: str, secret: str, overlap_seconds: float) -> Webhook:
        """Replace the (sealed) secret; the old one also signs for `overlap_seconds`. Raises `NotFound`, `Conflict`."""
        return registry.rotate(self._session, webhook_id, owner=owner, secret=secret, overlap_seconds=overlap_seconds)

    def remove(self, webhook_id: str, *, owner: str) -> None:
        """Delete a webhook with its deliveries, and those that it signs for. Raises `NotFound`."""
        registry.remove(self._session, webhook_id, owner=owner)

    # Deliveries

    def deliveries(
        self,
        webhook_id: str,
        *,
        owner: str,
        limit: int,
        state: DeliveryState | None = None,
        cursor: str | None = None,
    ) -> Page[Delivery]:
        """The log of a webhook, newest first. Raises `NotFound`, `InvalidInput` (cursor)."""
        return deliveries.page(self._session, webhook_id, owner=owner, state=state, limit=limit, cursor=cursor)

    def delivery(self, webhook_id: str, delivery_id: str, *, owner: str) -> Delivery:
        """Raises `NotFound`."""
        return deliveries.get(self._session, webhook_id, delivery_id, owner=owner)

    def redeliver(self, webhook_id: str, delivery_id: str, *, owner: str) -> Delivery:
        """Send a message again, from now on. Raises `NotFound`, `Conflict` (disabled)."""
        return deliveries.redeliver(self._session, webhook_id, delivery_id, owner=owner)

    # Sending

    def has_due(self) -> bool:
        """Whether some delivery may be due. One read of an index."""
        return deliveries.has_due(self._session)

    def claim(self, *, claim_seconds: float) -> ClaimedDelivery | None:
        """Take the delivery that has been due for longest; `None` if there is none."""
        return deliveries.claim(self._session, claim_seconds=claim_seconds)

    def record(
        self,
        claimed: ClaimedDelivery,
        *,
        status: int | None,
        error: str | None,
        seconds: float,
        retry_in: float | None,
        is_gone: bool = False,
    ) -> bool:
        """Write what became of a try; false if the claim is no longer valid. `retry_in=None`: no further try."""
        return deliveries.record(
            self._session,
            claimed,
            status=status,
            error=error,
            seconds=seconds,
            retry_in=retry_in,
            is_gone=is_gone,
        )

    def delete_old(self, *, older_than_seconds: float, limit: int) -> int:
        """Delete finished deliveries, webhooks of finished jobs that have none left, and expired secrets."""
        return registry.delete_old(self._session, older_than_seconds=older_than_seconds, limit=limit)
