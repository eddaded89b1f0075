"""The states of webhooks and of their deliveries. Imports the standard library only."""

from enum import StrEnum
from typing import Final

from replaceme_core.ledger.states import EventType

DEFAULT_EVENTS: Final = (EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED)


class Payload(StrEnum):
    """What a message contains: what identifies the event, or also the whole job."""

    THIN = "thin"
    FULL = "full"


class DeliveryState(StrEnum):
    """State of a delivery: `pending -> delivered | failed`; a redelivery returns it to `pending`."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DisabledBy(StrEnum):
    """Who has disabled a webhook: its owner, or its receiver with a 410."""

    OWNER = "owner"
    RECEIVER = "receiver"
