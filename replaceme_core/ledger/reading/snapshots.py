"""Jobs as they were read, with the version of each. The record is made only for those who have not seen the version."""

import hashlib
from collections.abc import Collection
from datetime import datetime

from sqlalchemy import bindparam, select, tuple_
from sqlalchemy.orm import Session

from replaceme_core.ledger.records import Job
from replaceme_core.ledger.row_mapping import to_job
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobRow
from replaceme_core.ledger.transitions import is_job_id

_SHOWN = tuple(
    column.key
    for column in JobRow.__mapper__.column_attrs
    if column.key not in ("report", "lease_token", "lease_expires_at", "enqueued_at")
)
_VERSION_BYTES = 12
OwnedId = tuple[str, str]
"""The id of a job, and whose it is to be."""
_BY_ID = select(JobRow).where(
    JobRow.id.in_(bindparam("ids", expanding=True)),
    # here and not afterwards: the answer for a job of another owner must take no longer than for one that never was
    tuple_(JobRow.id, JobRow.owner).in_(bindparam("wanted", expanding=True)),
)
"""Built once, since every poll reads by it."""


class JobSnapshot:
    """A job at the time of the read.

    `version` changes with everything that a client can see of it, whichever release wrote it: it is a hash of the
    columns, not a counter that each writer would have to increment.
    """

    def __init__(self, row: JobRow) -> None:
        self._row = row
        self.id: str = row.id
        self.owner: str = row.owner
        self.status: JobStatus = row.status
        self.priority: int = row.priority
        self.eta_seconds: float | None = row.eta_seconds
        self.not_before: datetime | None = row.not_before
        shown = repr([getattr(row, name) for name in _SHOWN])
        self.version = hashlib.blake2b(shown.encode(errors="replace"), digest_size=_VERSION_BYTES).hexdigest()

    def job(self) -> Job:
        """The record; validates the stored specification."""
        return to_job(self._row)


def get_snapshots(session: Session, wanted: Collection[OwnedId]) -> dict[OwnedId, JobSnapshot]:
    """One statement for all, one row of an index for each; what is no job of that owner is left out."""
    known = [one for one in wanted if is_job_id(one[0])]
    asked = {"ids": [job_id for job_id, _ in known], "wanted": known}
    rows = session.scalars(_BY_ID, asked, execution_options={"populate_existing": True})
    return {(row.id, row.owner): JobSnapshot(row) for row in rows}
