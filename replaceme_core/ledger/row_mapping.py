"""Rows of `jobs` as records, and specifications as the columns in which they are stored."""

from collections.abc import Mapping

from replaceme_core.ledger.records import Job
from replaceme_core.ledger.tables import JobRow, JsonObject
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.shapes import JobError, JobProgress, JobResult, JobSummary

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
_AS_STORED = (
    *("id", "owner", "status", "stage", "attempt", "worker", "lease_expires_at", "cancel_requested_at", "created_at"),
    *("started_at", "finished_at", "gate", "retry_of", "retried_as"),
)
"""The columns that a record has as they are."""


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
    spec, stored = to_spec(row), row.result or {}
    result, summary = {name: stored[name] for name in JobResult.model_fields if name in stored}, stored.get("summary")
    return Job(
        **{name: getattr(row, name) for name in _AS_STORED},
        spec=spec,
        labels=spec.labels,
        route=row.worker_kind,
        progress=JobProgress(
            overall=row.overall,
            stage=row.stage_fraction,
            eta_seconds=row.eta_seconds,
            # the version before clears the estimate only
            eta_error_seconds=None if row.eta_seconds is None else row.eta_error_seconds,
        ),
        error=None if row.error_code is None else JobError(code=row.error_code, message=row.error_message or ""),
        result=JobResult.model_validate(result) if result else None,
        summary=JobSummary.model_validate(summary) if summary else None,  # none in a result of the version before
    )
