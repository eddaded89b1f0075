"""How an attempt has ended, and why: a line of the worker's log, and attributes of the attempt's span."""

import logging

from opentelemetry.trace import get_current_span

from replaceme_core.ledger.records import Claim, JobEvent
from replaceme_core.ledger.states import EventType
from replaceme_core.telemetry import OUTCOME, mark_failed

_SHOWN = ("code", "message", "reason", "repo_id", "revision")

logger = logging.getLogger(__name__)


def report_outcome(claim: Claim, last: JobEvent) -> None:
    """Report the event that ended the attempt: a failure is an error, a job that is queued again a warning."""
    level = {EventType.FAILED: logging.ERROR, EventType.RELEASED: logging.WARNING}.get(last.type, logging.INFO)
    span = get_current_span()
    span.set_attribute(OUTCOME, last.type.value)
    if last.type is EventType.FAILED:
        mark_failed(span, str(last.data.get("code", last.type)))
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
