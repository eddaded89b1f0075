"""One line of the worker's log that says how an attempt has ended, and why."""

import logging

from replaceme_core.jobs.records import Claim, JobEvent
from replaceme_core.jobs.states import EventType

_SHOWN = ("code", "message", "reason", "repo_id", "revision")

logger = logging.getLogger(__name__)


def log_outcome(claim: Claim, last: JobEvent) -> None:
    """Log the event that ended the attempt: a failure is an error, a job that is queued again a warning."""
    level = {EventType.FAILED: logging.ERROR, EventType.RELEASED: logging.WARNING}.get(last.type, logging.INFO)
    found = {name: last.data[name] for name in _SHOWN if name in last.data}
    why = found.get("message") or found.get("reason")
    logger.log(
        level,
        "job %s: attempt %s has ended: %s%s",
        claim.job_id,
        claim.attempt,
        last.type,
        "" if why is None else f", {found['code']}: {why}" if "code" in found else f", {why}",
        extra={"outcome": last.type.value, **{name: value for name, value in found.items() if name != "message"}},
    )
