"""What becomes of a job whose runner somebody ended with SIGKILL."""

from collections.abc import Callable

from replaceme_core.errors import WorkerLost
from replaceme_core.jobs.records import Claim
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.states import EventType
from replaceme_core.runner.process import PerhapsOutOfMemory, RunnerKilled

REASON = "the runner was killed"
_MOST_EVENTS = 10_000


def after_kill(killed: RunnerKilled | PerhapsOutOfMemory, claim: Claim, *, max_attempts: int) -> Callable[[Jobs], None]:
    """What there is to write. A kill that memory had no part in costs an attempt, as the loss of a worker does.

    Where the system does not tell, the job is tried once more: an operator's hand seldom strikes twice, want of memory
    does.
    """

    def write(jobs: Jobs) -> None:
        known = isinstance(killed, RunnerKilled)
        if claim.counted < max_attempts and (known or not _struck_before(jobs, claim)):
            jobs.release(claim, reason=REASON)
        elif known:
            message = f"{killed.message} (attempt {claim.attempt} of {max_attempts})"
            jobs.fail(claim, code=WorkerLost.code, message=message)
        else:
            jobs.fail(claim, code=killed.code, message=killed.message)

    return write


def _struck_before(jobs: Jobs, claim: Claim) -> bool:
    events = jobs.events(claim.job_id, limit=_MOST_EVENTS).items
    return any(event.type is EventType.RELEASED and event.data.get("reason") == REASON for event in events)
