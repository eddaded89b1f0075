"""Lists of jobs: filters, order, and the cursor that leads from one page to the next."""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import ColumnElement, Select, and_, or_, select
from sqlalchemy.orm import Session

from replaceme_core.errors import InvalidInput
from replaceme_core.ledger.reading.snapshots import JobSnapshot
from replaceme_core.ledger.records import Page
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobLabelRow, JobRow

CURSOR_PATTERN = r"^[A-Za-z0-9_-]{1,200}$"
_CURSOR = re.compile(r"(-?[a-z_]+) (\d{1,18}|-) ([1-9]\d{0,17})")
_MICROSECONDS = 1_000_000


class Sort(StrEnum):
    """The order of a list. By `finished_at`, only jobs that have finished are listed."""

    NEWEST = "-created_at"
    OLDEST = "created_at"
    LAST_FINISHED = "-finished_at"
    FIRST_FINISHED = "finished_at"

    @property
    def descends(self) -> bool:
        return self.value.startswith("-")

    @property
    def by_end(self) -> bool:
        return self in (Sort.LAST_FINISHED, Sort.FIRST_FINISHED)


@dataclass(frozen=True, kw_only=True)
class JobFilters:
    """What the jobs of a list have in common; what is empty or `None` does not matter. `ids` may name no job."""

    statuses: Sequence[JobStatus] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    ids: Sequence[str] = ()

    def conditions(self, *, owner: str | None) -> list[ColumnElement[bool]]:
        """The WHERE clause. Raises `InvalidInput` (field `labels`)."""
        found: list[ColumnElement[bool]] = [] if owner is None else [JobRow.owner == owner]
        if len(self.statuses) == 1:
            found.append(JobRow.status == self.statuses[0])
        elif self.statuses:
            found.append(JobRow.status.in_(self.statuses))
        if self.model is not None:
            # rows of the release before have it in the specification only
            old = and_(JobRow.model.is_(None), JobRow.spec["model"]["repo_id"].as_string() == self.model)
            found.append(or_(JobRow.model == self.model, old))
        if self.created_after is not None:
            found.append(JobRow.created_at > self.created_after)
        if self.created_before is not None:
            found.append(JobRow.created_at < self.created_before)
        if self.ids:
            found.append(JobRow.id.in_(self.ids))
        for name, value in self.labels.items():
            if not (name + value).isprintable():
                raise InvalidInput(
                    "the characters of a label must be printable", field="labels", value=f"{name}={value}"
                )
            labelled = select(JobLabelRow.job_id).where(JobLabelRow.name == name, JobLabelRow.value == value)
            found.append(JobRow.id.in_(labelled))
        return found


ALL = JobFilters()


def page(
    session: Session, *, limit: int, cursor: str | None, owner: str | None, filters: JobFilters, sort: Sort
) -> Page[JobSnapshot]:
    """One page. Raises `InvalidInput` (field `cursor`, `limit` or `labels`).

    A cursor is a position in the order, so new jobs neither shift a page nor repeat a job.
    """
    check_limit(limit)
    query = _ordered(select(JobRow).where(*filters.conditions(owner=owner)), sort).limit(limit + 1)
    if cursor is not None:
        query = query.where(_beyond(cursor, sort))
    rows = session.scalars(query, execution_options={"populate_existing": True}).all()
    more = len(rows) > limit
    return Page(
        items=tuple(JobSnapshot(row) for row in rows[:limit]),
        next_cursor=_to_cursor(rows[limit - 1], sort) if more else None,
    )


def check_limit(limit: int) -> None:
    """Raises `InvalidInput` for a limit below one."""
    if limit < 1:
        raise InvalidInput("the limit must be at least 1", field="limit", value=limit)


def _ordered(query: Select[JobRow], sort: Sort) -> Select[JobRow]:
    columns = (JobRow.finished_at, JobRow.number) if sort.by_end else (JobRow.number,)
    if sort.by_end:
        query = query.where(JobRow.finished_at.is_not(None))
    return query.order_by(*(column.desc() if sort.descends else column.asc() for column in columns))


def _beyond(cursor: str, sort: Sort) -> ColumnElement[bool]:
    """What comes after the position of a cursor."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    match = _CURSOR.fullmatch(text)
    if match is None or match[1] != sort or (match[2] == "-") is sort.by_end:
        raise InvalidInput(
            "the cursor must be the next_cursor of an earlier page of this list, unchanged and with the same sort",
            field="cursor",
            value=cursor,
        )
    number = int(match[3])
    after = JobRow.number < number if sort.descends else JobRow.number > number
    if not sort.by_end:
        return after
    seconds, microseconds = divmod(int(match[2]), _MICROSECONDS)
    try:
        at = datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)
    except (ValueError, OverflowError, OSError):
        raise InvalidInput("the cursor names a time that does not exist", field="cursor", value=cursor) from None
    later = JobRow.finished_at < at if sort.descends else JobRow.finished_at > at
    return or_(later, and_(JobRow.finished_at == at, after))


def _to_cursor(row: JobRow, sort: Sort) -> str:
    at = "-"
    if sort.by_end:
        assert row.finished_at is not None
        at = str(int(row.finished_at.timestamp()) * _MICROSECONDS + row.finished_at.microsecond)
    return base64.urlsafe_b64encode(f"{sort} {at} {row.number}".encode()).decode().rstrip("=")
