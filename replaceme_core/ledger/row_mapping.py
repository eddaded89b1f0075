"""Rows of `jobs` as records, and specifications as the columns in which they are stored."""

from collections.abc import Mapping

from replaceme_core.ledger.records import Change, Job, JobError, JobResult, JobSummary, JobWarning
from replaceme_core.ledger.tables import JobRow, JsonObject
from replaceme_core.request.gate import GateResult
from replaceme_core.request.spec import CompressionSpec

# These fields have columns of their own, because SQL statements use them. They are left out of the JSON, because the
# version before this one refuses fields that it does not know.
_IN_COLUMNS = ("priority", "max_queue_seconds", "max_runtime_seconds", "credential")
# left out of the JSON unless they are set, for the same reason
_ONLY_IF_SET = {
    "compute": ("quantization", "pattern_safe"),
    "calibration": ("self_generated", "sources", "general", "repeated", "judged_on"),
    "method": ("name",),
    "evaluation": ("tasks", "task_limit", "few_shot"),
    "output": ("overwrite", "create_pr"),
}
_PARTS_ONLY_IF_SET = ("gate",)


def stored_spec(spec: CompressionSpec) -> JsonObject:
    """The part of a specification that is stored as JSON."""
    unset = {
        part: {name for name in names if _is_unset(getattr(getattr(spec, part), name))}
        for part, names in _ONLY_IF_SET.items()
    }
    absent = [name for name in _PARTS_ONLY_IF_SET if getattr(spec, name) is None]
    exclude: Mapping[str, bool | set[str]] = {**dict.fromkeys((*_IN_COLUMNS, *absent), True), **unset}
    return spec.model_dump(mode="json", exclude=exclude)


def _is_unset(value: object) -> bool:
    return value is None or value is False or value == ()  # and not 0, which is a share


def to_spec(row: JobRow) -> CompressionSpec:
    """The whole specification, from its JSON and its columns, validated."""
    return CompressionSpec.model_validate({**row.spec, **{name: getattr(row, name) for name in _IN_COLUMNS}})


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
        # the version before clears the estimate only
        eta_error_seconds=None if row.eta_seconds is None else row.eta_error_seconds,
        attempt=row.attempt,
        worker=row.worker,
        lease_expires_at=row.lease_expires_at,
        cancel_requested_at=row.cancel_requested_at,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        error=JobError(code=row.error_code or "", message=row.error_message or "") if failed else None,
        result=_to_result(row.result) if row.result is not None else None,
        gate=None if row.gate is None else GateResult.model_validate(row.gate),
        retry_of=row.retry_of,
        retried_as=row.retried_as,
    )


def _to_result(stored: JsonObject) -> JobResult:
    warnings = stored.get("warnings", [])
    assert isinstance(warnings, list)
    return JobResult(
        repo_id=str(stored["repo_id"]),
        revision=str(stored["revision"]),
        removed_blocks=_to_blocks(stored["removed_blocks"]),
        kept_blocks=_to_blocks(stored["kept_blocks"]),
        warnings=tuple(JobWarning(code=one["code"], message=one["message"]) for one in warnings),
        summary=_to_summary(stored.get("summary")),
    )


def _to_summary(stored: object) -> JobSummary | None:
    """`None` for a result that the version before has written."""
    if not isinstance(stored, dict):
        return None
    return JobSummary(**{name: Change(before=both["before"], after=both["after"]) for name, both in stored.items()})


def _to_blocks(stored: object) -> tuple[int, ...]:
    assert isinstance(stored, list)
    return tuple(int(block) for block in stored)
