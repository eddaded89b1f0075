"""The right to work on a job, renewed in the background; how it ends early, in five ways; calls that stop then.

A thread renews the lease at a third of its length and checks about once a second whether a client asked to cancel. The
lease counts as lost when a renewal updates no row *or raises*. Where the database cannot be reached, the renewal is
retried until nine tenths of the lease are over; then it counts as lost, and so it does when a renewal hangs: a second
thread, which never uses the database, watches the time of the last successful renewal, the job's own deadline, that of
its present stage, and whether this worker is shutting down.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Self, TypeVar

from replaceme_core.errors import (
    Cancelled,
    DatabaseUnreachable,
    LeaseLost,
    OutOfTime,
    ReplaceMeError,
    StageTimeout,
    Unavailable,
)
from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import Claim
from replaceme_core.runner.messages import Stage
from replaceme_core.telemetry import in_context

RENEWALS_PER_LEASE = 3
POLL_SECONDS = 1.0
SAFE_PART = 0.9  # of the lease, counted from before the renewal was sent: the database's clock may be a little ahead

logger = logging.getLogger(__name__)


class ShutDown(ReplaceMeError):
    """This worker is shutting down and its grace period is over: the job is released. It never ends the job."""


class Lease:
    """A claim that is renewed while the `with` block runs.

    `ended` is set when the lease is lost, a cancel was requested, the time of the job or of its stage is up, or the
    worker is shut down; `check` then raises the matching error. Actions passed to `on_end` run at that moment, in the
    thread that noticed.
    """

    def __init__(
        self,
        database: Database,
        claim: Claim,
        *,
        lease_seconds: float,
        claimed_at: float,
        on_heartbeat: Callable[[], None] = lambda: None,
        must_release: Callable[[], bool] = lambda: False,
        stage_seconds: float = math.inf,
    ) -> None:
        """`claimed_at` is a reading of the monotonic clock from before the claim was made.

        A stage may take `stage_seconds`, from each call of `begin_stage`.

        `on_heartbeat` is called about once a second and may write to the database; if it raises, the lease is lost,
        except for `DatabaseUnreachable`. `must_release` returns whether this worker has to release its job now.
        """
        self.claim = claim
        self.ended = threading.Event()
        self._database = database
        self._lease_seconds = lease_seconds
        self._renewed_at = claimed_at
        self._on_heartbeat = on_heartbeat
        self._must_release = must_release
        self._state = threading.RLock()
        self._deadline = math.inf if claim.seconds_left is None else time.monotonic() + claim.seconds_left
        self._stage_seconds = stage_seconds
        self._stage: tuple[Stage | None, float] = (None, math.inf)  # and until when it may take, by the monotonic clock
        self._error: ReplaceMeError | None = None  # why the work has to stop
        self._committing = False
        self._actions: list[Callable[[], None]] = []
        self._closed = threading.Event()
        self._threads = (
            threading.Thread(target=in_context(self._renew_in_time), name=f"lease-{claim.job_id}", daemon=True),
            threading.Thread(target=in_context(self._watch), name=f"lease-watch-{claim.job_id}", daemon=True),
        )

    @property
    def lost(self) -> bool:
        return isinstance(self._error, LeaseLost)

    @property
    def stage(self) -> Stage | None:
        """The stage that began last."""
        return self._stage[0]

    def check(self) -> None:
        """Raise `LeaseLost`, `Cancelled`, `OutOfTime`, `StageTimeout` or `ShutDown` if the work has to stop."""
        with self._state:
            if self._error is not None:
                raise self._error.with_traceback(None)

    def begin_stage(self, stage: Stage) -> None:
        """From now on, or again, `stage` has its time. What it does then, in native code too, is ended by `on_end`."""
        with self._state:
            self._stage = (stage, time.monotonic() + self._stage_seconds)

    def on_end(self, action: Callable[[], None]) -> None:
        """Run `action` when the lease ends early, or now if it already has."""
        with self._state:
            if not self.ended.is_set():
                self._actions.append(action)
                return
        action()

    def last_check(self) -> None:
        """Check the lease in the database right before the commit on the Hub. After that only loss and shutdown count.

        Raises what `check` raises; `LeaseLost` also when the database cannot be reached.
        """
        self.commit_refused()  # who checks again has found no commit of this job on the Hub
        renew = partial(self._renew, only_if_valid=True)
        self._call(renew, failed="the lease could not be renewed", may_wait=False)
        with self._state:
            self.check()
            self._committing = True

    def commit_refused(self) -> None:
        """The Hub did not make the commit that the last check allowed: a cancel and the deadline count again."""
        with self._state:
            self._committing = False

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(timeout=POLL_SECONDS)

    def _renew_in_time(self) -> None:
        interval = self._lease_seconds / RENEWALS_PER_LEASE
        while not self._closed.wait(min(POLL_SECONDS, interval)):
            if self.lost:
                return
            if time.monotonic() - self._renewed_at >= interval:
                self._call(self._renew, failed="the lease could not be renewed")
            else:
                self._call(self._is_cancelled, failed="the job could not be read")
            if not self.ended.is_set():
                self._call(self._on_heartbeat, failed="progress could not be stored")

    def _call(self, call: Callable[[], bool | None], *, failed: str, may_wait: bool = True) -> None:
        """Use the database; what `call` returns is whether a cancel was requested.

        One that cannot be reached is asked again, for which there is the time that `_watch` knows, unless this may not
        wait. With any other error the lease is lost.
        """
        try:
            is_cancelled = call()
        except Exception as error:
            if isinstance(error, DatabaseUnreachable) and may_wait:
                logger.warning("job %s: %s, retrying: %s", self.claim.job_id, failed, error)
            else:
                self._stop(LeaseLost(f"{failed}: {error}"))
        else:
            if is_cancelled:
                self._stop(Cancelled("the job was cancelled"))

    def _renew(self, *, only_if_valid: bool = False) -> bool:
        before = time.monotonic()
        with self._database.session() as session:
            if only_if_valid:
                attempts.assert_held(session, self.claim)
            is_cancelled = attempts.renew(session, self.claim, lease_seconds=self._lease_seconds)
        self._renewed_at = before
        return is_cancelled

    def _is_cancelled(self) -> bool:
        """A cheap read between renewals."""
        with self._database.session(read_only=True) as session:
            return attempts.job_of(session, self.claim).cancel_requested

    def _watch(self) -> None:
        while not self._closed.is_set() and not self.lost:
            now = time.monotonic()
            left = self._renewed_at + self._lease_seconds * SAFE_PART - now
            if left <= 0:
                self._stop(LeaseLost("the lease expired: no renewal succeeded in time"))
                return
            if self._deadline <= now:
                self._stop(OutOfTime("not done within max_runtime_seconds of its first start"))
            stage, end = self._stage
            if end <= now:
                self._stop(
                    StageTimeout(
                        f"the stage {stage} was not done within {self._stage_seconds:.15g} s, the limit that "
                        "REPLACEME_STAGE_SECONDS sets"
                    )
                )
            if self._must_release():
                self._stop(ShutDown("the worker was shut down"))
            self._closed.wait(min(left, POLL_SECONDS, self._deadline - now if self._deadline > now else math.inf))

    def _stop(self, error: ReplaceMeError) -> None:
        """End the work with `error`, unless it has ended.

        After the last check only the loss of the lease ends it, and a shutdown: the next attempt looks for the commit.
        A lease can be lost after any other end as well, and then nothing more may be written.
        """
        is_loss = isinstance(error, LeaseLost)
        with self._state:
            too_late = self._committing and not isinstance(error, ShutDown)
            if self._closed.is_set() or self.lost or (not is_loss and (too_late or self._error is not None)):
                return
            self._error = error
            self.ended.set()
            actions, self._actions = self._actions, []
        level = logging.ERROR if is_loss else logging.WARNING
        logger.log(level, "job %s: attempt %s is stopped: %s", self.claim.job_id, self.claim.attempt, error)
        for action in actions:
            action()


FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
LONGEST_WAIT_SECONDS = 3600.0
"""All that the Hub may ask for during one call; its own limits are for five minutes."""

T = TypeVar("T")


def call_under_lease(lease: Lease, call: Callable[[], T]) -> T:
    """The result of `call`. Raises its error, or what `lease.check` raises as soon as the lease ends.

    A call that hangs in the network cannot be interrupted. Its thread is then abandoned; the next report of progress,
    or the check before a commit, stops it.
    """
    lease.check()
    result: Future[T] = Future()
    done_or_ended = threading.Event()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    result.add_done_callback(lambda _: done_or_ended.set())
    lease.on_end(done_or_ended.set)
    threading.Thread(target=run, name="hub", daemon=True).start()
    done_or_ended.wait()
    if not result.done() or result.exception() is not None:
        lease.check()  # the end of the lease may be the cause of the error
    return result.result()


def retry_under_lease(
    lease: Lease,
    call: Callable[[], T],
    *,
    seconds: float,
    retry_on: tuple[type[ReplaceMeError], ...] = (Unavailable,),
    done: Callable[[], float] = lambda: 0.0,
) -> T:
    """The result of `call`, which is retried for at most `seconds` after the first error in `retry_on`.

    They begin anew with an error before which `done` has grown: the Hub has answered since. Where the Hub says when to
    come back, it is not asked before; such waits, of up to an hour in all, do not count. Raises the last error when
    that time is up, any other error at once, and what `lease.check` raises as soon as the lease ends, during a pause
    too. The lease is renewed meanwhile.
    """
    pause = FIRST_PAUSE_SECONDS
    deadline: float | None = None
    allowed = LONGEST_WAIT_SECONDS
    most = 0.0
    while True:
        try:
            return call_under_lease(lease, call)
        except retry_on as error:
            now = time.monotonic()
            if deadline is None or done() > most:
                deadline, pause, most = now + seconds, FIRST_PAUSE_SECONDS, done()
            asked = (error.retry_after or 0.0) if isinstance(error, Unavailable) else 0.0
            if now >= deadline or asked > allowed:
                raise
            wait = max(asked, min(pause * random.uniform(0.5, 1.5), deadline - now))
            allowed -= asked
            deadline += asked
            logger.warning("job %s: %s; retrying in %.1f s", lease.claim.job_id, error.explained, wait)
        lease.ended.wait(wait)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
