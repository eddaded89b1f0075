"""The body of a message: `{type, timestamp, data}`, as Standard Webhooks recommends."""

import json
from dataclasses import asdict
from datetime import datetime

from replaceme_core.json_values import json_safe
from replaceme_core.ledger.records import Job, JobEvent
from replaceme_core.ledger.states import Payload

TYPE_PREFIX = "job."


def body_of(payload: Payload, job: Job, event: JobEvent) -> str:
    """The JSON text of a message about one event. `job` is as it is right after the event."""
    data: dict[str, object] = {
        "job_id": job.id,
        "seq": event.seq,
        "attempt": event.attempt,
        "status": job.status.value,
        "labels": dict(job.labels),
        "event": json_safe(event.data),
    }
    if payload is Payload.FULL:
        data["job"] = _whole(job)
    message = {"type": f"{TYPE_PREFIX}{event.type}", "timestamp": _time(event.at), "data": data}
    return json.dumps(message, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _whole(job: Job) -> dict[str, object]:
    """The job as the API shows it, without links, which depend on how the API is reached."""
    result = job.result
    return {
        "id": job.id,
        "status": job.status.value,
        "route": None if job.worker_kind is None else job.worker_kind.value,
        "stage": None if job.stage is None else job.stage.value,
        "progress": {
            "overall": job.overall,
            "stage": job.fraction,
            "eta_seconds": job.eta_seconds,
            "eta_error_seconds": job.eta_error_seconds,
        },
        "attempt": job.attempt,
        "labels": dict(job.labels),
        "spec": job.spec.model_dump(mode="json"),
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "finished_at": _time(job.finished_at),
        "error": None if job.error is None else {"code": job.error.code, "message": job.error.message},
        "result": None
        if result is None
        else {
            "repo_id": result.repo_id,
            "revision": result.revision,
            "removed_blocks": list(result.removed_blocks),
            "kept_blocks": list(result.kept_blocks),
            "warnings": [{"code": one.code, "message": one.message} for one in result.warnings],
        },
        "summary": None if result is None or result.summary is None else asdict(result.summary),
        "gate": None if job.gate is None else job.gate.model_dump(mode="json"),
        "retry_of": job.retry_of,
        "retried_as": job.retried_as,
    }


def _time(at: datetime | None) -> str | None:
    """RFC 3339 in UTC, as the API writes times."""
    return None if at is None else at.isoformat().replace("+00:00", "Z")
