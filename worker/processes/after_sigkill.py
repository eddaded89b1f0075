"""The outcome of an attempt whose runner was ended by a SIGKILL that we did not send."""

from collections.abc import Callable

from sqlalchemy.orm import Session

from replaceme_core.errors import WorkerLost
from replaceme_core.ledger import attempts
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.states import EventType
from replaceme_core.runner.process import PerhapsOutOfMemory, RunnerKilled

REASON = "the runner was killed"


def outcome_after_sigkill(
    killed: RunnerKilled | PerhapsOutOfMemory, claim: Claim, *, max_attempts: int
) -> Callable[[Session], None]:
    """The write that ends the attempt. A kill that was not for memory uses up one attempt, as a lost worker does.

    Where the cause is unknown the job is retried once: an operator seldom kills a runner twice, but a job that does not
    fit into memory is killed each time.
    """

    def write(session: Session) -> None:
        not_for_memory = isinstance(killed, RunnerKilled)
        if claim.counted < max_attempts and (not_for_memory or not _killed_before(session, claim)):
            attempts.release(session, claim, reason=REASON)
        elif not_for_memory:
            message = f"{killed.message} (attempt {claim.attempt} of {max_attempts})"
            attempts.fail(session, claim, code=WorkerLost.code, message=message)
        else:
            attempts.fail(session, claim, code=killed.code, message=killed.message)

    return write


def _killed_before(session: Session, claim: Claim) -> bool:
    events = attempts.history(session, claim)
    return any(event.type is EventType.RELEASED and event.data.get("reason") == REASON for event in events)
