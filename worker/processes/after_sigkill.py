"""The outcome of an attempt whose runner was ended by a SIGKILL that we did not send."""

from collections.abc import Callable

from replaceme_core.errors import WorkerLost
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.repository import Jobs
from replaceme_core.ledger.states import EventType
from replaceme_core.runner.process import PerhapsOutOfMemory, RunnerKilled

REASON = "the runner was killed"
_MAX_EVENTS = 10_000


def outcome_after_sigkill(
    killed: RunnerKilled | PerhapsOutOfMemory, claim: Claim, *, max_attempts: int
) -> Callable[[Jobs], None]:
    """The write that ends the attempt. A kill that was not for memory uses up one attempt, as a lost worker does.

    Where the cause is unknown the job is retried once: an operator seldom kills a runner twice, but a job that does not
    fit into memory is killed each time.
    """

    def write(jobs: Jobs) -> None:
        not_for_memory = isinstance(killed, RunnerKilled)
        if claim.counted < max_attempts and (not_for_memory or not _killed_before(jobs, claim)):
            jobs.release(claim, reason=REASON)
        elif not_for_memory:
            message = f"{killed.message} (attempt {claim.attempt} of {max_attempts})"
            jobs.fail(claim, code=WorkerLost.code, message=message)
        else:
            jobs.fail(claim, code=killed.code, message=killed.message)

    return write


def _killed_before(jobs: Jobs, claim: Claim) -> bool:
    events = jobs.events(claim.job_id, limit=_MAX_EVENTS).items
    return any(event.type is EventType.RELEASED and event.data.get("reason") == REASON for event in events)
