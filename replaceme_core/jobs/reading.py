"""Questions to the ledger: one job, lists by cursor, history, metrics. Writes nothing."""

import base64
import binascii
import re
from collections.abc import Collection, Mapping

from sqlalchemy import select
from sqlalchemy.orm import undefer

from replaceme_core.errors import InvalidInput, NotFound
from replaceme_core.jobs.records import Job, JobError, JobEvent, JobResult, Metric, Page, QueuePosition
from replaceme_core.jobs.scheduling.next_job import place_of
from replaceme_core.jobs.scheduling.queue_positions import QueuePositions, queue_positions
from replaceme_core.jobs.session import LedgerSession
from replaceme_core.jobs.states import JobStatus
from replaceme_core.jobs.tables import JobEventRow, JobLabelRow, JobRow, JsonObject, MetricRow
from replaceme_core.jobs.transitions import find, is_job_id
from replaceme_core.runner.messages import Stage
from replaceme_core.spec import CompressionSpec

_CURSOR = re.compile(r"before:([1-9]\d{0,17})")
_ACTIVE = (JobStatus.QUEUED, JobStatus.RUNNING)


# what SQL has to see has columns of its own; the version before this one refuses fields it does not know
_IN_COLUMNS = ("priority", "max_queue_seconds", "max_runtime_seconds")
_IN_COLUMNS_OF_COMPUTE = ("shards",)
_ONLY_IF_ASKED_FOR = {"compute": "quantization", "calibration": "self_generated"}


def stored_spec(spec: CompressionSpec) -> JsonObject:
    """The part of a specification that is stored as JSON."""
    unasked = {part: {name} for part, name in _ONLY_IF_ASKED_FOR.items() if not getattr(getattr(spec, part), name)}
    unasked["compute"] = unasked.get("compute", set()) | set(_IN_COLUMNS_OF_COMPUTE)
    exclude: Mapping[str, bool | set[str]] = {**dict.fromkeys(_IN_COLUMNS, True), **unasked}
    return spec.model_dump(mode="json", exclude=exclude)


def to_spec(row: JobRow) -> CompressionSpec:
    """The specification of a row, put together again and checked."""
    stored = row.spec.get("compute", {})
    assert isinstance(stored, dict)
    compute = {**stored, **{name: getattr(row, name) for name in _IN_COLUMNS_OF_COMPUTE}}
    return CompressionSpec.model_validate(
        {**row.spec, **{name: getattr(row, name) for name in _IN_COLUMNS}, "compute": compute}
    )


def to_job(row: JobRow) -> Job:
    """The record of a row."""
    failed = row.error_code is not None
    return Job(
        id=row.id,
        owner=row.owner,
        status=row.status,
        spec=to_spec(row),
        worker_kind=row.worker_kind,
        stage=row.stage,
        overall=row.overall,
        fraction=row.stage_fraction,
        eta_seconds=row.eta_seconds,
        attempt=row.attempt,
        worker=row.worker,
        lease_expires_at=row.lease_expires_at,
        cancel_requested_at=row.cancel_requested_at,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        error=JobError(code=row.error_code or "", message=row.error_message or "") if failed else None,
        result=_to_result(row.result) if row.result is not None else None,
    )


def _to_result(stored: JsonObject) -> JobResult:
    return JobResult(
        repo_id=str(stored["repo_id"]),
        revision=str(stored["revision"]),
        removed_blocks=_to_blocks(stored["removed_blocks"]),
        kept_blocks=_to_blocks(stored["kept_blocks"]),
    )


def _to_blocks(stored: object) -> tuple[int, ...]:
    assert isinstance(stored, list)
    return tuple(int(block) for block in stored)


def _to_cursor(number: int) -> str:
    return base64.urlsafe_b64encode(f"before:{number}".encode()).decode().rstrip("=")


def _from_cursor(cursor: str) -> int:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise InvalidInput(
            "the cursor must be the next_cursor of an earlier page, unchanged", field="cursor", value=cursor
        )
    return int(match[1])


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise InvalidInput("the limit must be at least 1", field="limit", value=limit)


class Reading:
    """The part of `Jobs` that asks."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session

    def get(self, job_id: str, *, owner: str | None = None) -> Job:
        """Raises `JobNotFound`, also where the job belongs to someone else than `owner`."""
        return to_job(find(self._session, job_id, owner=owner))

    def get_each(self, job_ids: Collection[str]) -> dict[str, Job]:
        """Those of `job_ids` that are jobs, in one question."""
        known = [job_id for job_id in job_ids if is_job_id(job_id)]
        rows = self._session.scalars(
            select(JobRow).where(JobRow.id.in_(known)), execution_options={"populate_existing": True}
        )
        return {row.id: to_job(row) for row in rows}

    def queue_positions(self) -> QueuePositions:
        """The places of all queued jobs."""
        return queue_positions(self._session)

    def place(self, job_id: str) -> QueuePosition | None:
        """Where the job stands in the queue; `None` if it is not queued. Raises `JobNotFound`."""
        return place_of(self._session, find(self._session, job_id))

    def page(
        self,
        *,
        limit: int,
        cursor: str | None = None,
        owner: str | None = None,
        status: JobStatus | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Page[Job]:
        """Newest first; a job must carry all of `labels`. Raises `InvalidInput` (field `cursor`, `limit`, `labels`).

        A cursor is a place in the order of arrival, so jobs that arrive meanwhile neither shift nor repeat a page.
        """
        _check_limit(limit)
        query = select(JobRow).order_by(JobRow.number.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(JobRow.number < _from_cursor(cursor))
        if owner is not None:
            query = query.where(JobRow.owner == owner)
        if status is not None:
            query = query.where(JobRow.status == status)
        for name, value in (labels or {}).items():
            if not (name + value).isprintable():
                raise InvalidInput("a label has printable characters only", field="labels", value=f"{name}={value}")
            carriers = select(JobLabelRow.job_id).where(JobLabelRow.name == name, JobLabelRow.value == value)
            query = query.where(JobRow.id.in_(carriers))
        rows = self._session.scalars(query, execution_options={"populate_existing": True}).all()
        more = len(rows) > limit
        return Page(
            items=tuple(to_job(row) for row in rows[:limit]),
            next_cursor=_to_cursor(rows[limit - 1].number) if more else None,
        )

    def events(self, job_id: str, *, after: int = 0, limit: int = 100) -> Page[JobEvent]:
        """History in order, past the event `after`. Raises `JobNotFound`, `InvalidInput` (field `limit`).

        `next_cursor` is the `after` of the next page, as digits.
        """
        _check_limit(limit)
        find(self._session, job_id)
        rows = self._session.scalars(
            select(JobEventRow)
            .where(JobEventRow.job_id == job_id, JobEventRow.seq > min(max(after, 0), 2**31 - 1))
            .order_by(JobEventRow.seq)
            .limit(limit + 1)
        ).all()
        return Page(
            items=tuple(
                JobEvent(job_id=row.job_id, seq=row.seq, type=row.type, at=row.at, attempt=row.attempt, data=row.data)
                for row in rows[:limit]
            ),
            next_cursor=str(rows[limit - 1].seq) if len(rows) > limit else None,
        )

    def metrics(self, job_id: str) -> list[Metric]:
        """Values of the present attempt, in the order they were written. Raises `JobNotFound`."""
        job = find(self._session, job_id)
        rows = self._session.scalars(
            select(MetricRow)
            .where(MetricRow.job_id == job_id, MetricRow.attempt == job.attempt)
            .order_by(MetricRow.number)
        )
        return [
            Metric(
                job_id=row.job_id,
                attempt=row.attempt,
                name=row.name,
                stage=Stage(row.stage),
                block=row.block,
                candidate=row.candidate,
                value=row.value,
                unit=row.unit,
                at=row.at,
            )
            for row in rows
        ]

    def report(self, job_id: str) -> dict[str, object]:
        """The content of `replaceme.json`. Raises `JobNotFound`, or `NotFound` while there is none."""
        find(self._session, job_id)
        row = self._session.scalars(
            select(JobRow).where(JobRow.id == job_id).options(undefer(JobRow.report)),
            execution_options={"populate_existing": True},
        ).one()
        if row.report is None:
            raise NotFound(f"job {job_id!r} has no report: it is {row.status}")
        return row.report

    def active_among(self, job_ids: Collection[str]) -> set[str]:
        """Those of `job_ids` whose jobs are queued or running."""
        return set(self._session.scalars(select(JobRow.id).where(JobRow.id.in_(job_ids), JobRow.status.in_(_ACTIVE))))
