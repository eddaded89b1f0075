"""The states of a job and the table of transitions between them.

              worker lost, or job given back
             +-----------------------------+
             v                             |
    -----> queued ---------------------> running
             |                             |
             |                             +-----> succeeded
             |                             |
             +--- limit has passed --------+-----> failed
             |                             |
             +--- cancel was requested ----+-----> cancelled

A status is a fact; a wish (cancel) is a flag, and progress is the stage. Knows the standard library only.
"""

from enum import StrEnum
from types import MappingProxyType
from typing import Final


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ShardState(StrEnum):
    """Of a part of a running job's calibration: `waiting <-> running -> done`, and gone when its job is over."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


class EventType(StrEnum):
    """What the history of a job consists of."""

    CREATED = "created"
    CLAIMED = "claimed"
    STAGE = "stage"
    CANCEL_REQUESTED = "cancel_requested"
    RELEASED = "released"
    LEASE_LAPSED = "lease_lapsed"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})

ALLOWED: Final = MappingProxyType(
    {
        # failed without having run: its time in the queue, or for its whole run, was up
        JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.FAILED, JobStatus.CANCELLED}),
        # back to queued: the worker was lost, or gave the job back on its way down
        JobStatus.RUNNING: frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.QUEUED}),
        JobStatus.SUCCEEDED: frozenset[JobStatus](),
        JobStatus.FAILED: frozenset[JobStatus](),
        JobStatus.CANCELLED: frozenset[JobStatus](),
    }
)


def is_allowed(old: JobStatus, new: JobStatus) -> bool:
    """Whether the table of transitions knows `old -> new`."""
    return new in ALLOWED[old]
