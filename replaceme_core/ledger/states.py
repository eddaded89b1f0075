"""The states of jobs, of webhooks and of their deliveries, and how a job goes from one to the next.

          worker lost, or job released by it
             +-----------------------------+
             v                             |
    -----> queued ---------------------> running
             |                             |
             |                             +-----> succeeded
             |                             |
             +--- deadline has passed -----+-----> failed
             |                             |
             +--- cancel was requested ----+-----> cancelled

A status is a fact. A request to cancel is a flag, and progress is the stage. Imports the standard library only.
"""

from enum import StrEnum
from typing import Final


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class EventType(StrEnum):
    """Types of the events in a job's history.

    `created`: accepted; `claimed`: a worker starts an attempt; `stage`: a stage begins; `cancel_requested`: a client
    asks to cancel; `released`: queued again by its worker; `lease_lapsed`: its worker was lost; `succeeded`, `failed`
    and `cancelled` end the history.
    """

    CREATED = "created"
    CLAIMED = "claimed"
    STAGE = "stage"
    CANCEL_REQUESTED = "cancel_requested"
    RELEASED = "released"
    LEASE_LAPSED = "lease_lapsed"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ATTEMPT_ENDS: Final = (
    EventType.RELEASED,
    EventType.LEASE_LAPSED,
    EventType.SUCCEEDED,
    EventType.FAILED,
    EventType.CANCELLED,
)
"""A new type that ends an attempt is here too; any other one is only written."""

ACTIVE: Final = (JobStatus.QUEUED, JobStatus.RUNNING)
TERMINAL: Final = frozenset(JobStatus).difference(ACTIVE)

DEFAULT_EVENTS: Final = (EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED)
TYPE_PREFIX: Final = "job."
"""Before the type of an event in a message."""


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
