"""Calls to the Hub that stop when the lease ends, and are retried while the Hub cannot be reached."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from replaceme_core.errors import HubUnreachable, ReplaceMeError, Unavailable
from worker.lease import Lease

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
LONGEST_WAIT_SECONDS = 3600.0
"""All that the Hub may ask for during one call; its own limits are for five minutes."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class _CallThread(threading.Thread, Generic[T]):
    """One call in a thread of its own, with its result or its error."""

    def __init__(self, call: Callable[[], T], *, on_done: Callable[[], None]) -> None:
        super().__init__(name="hub", daemon=True)
        self._call = call
        self._on_done = on_done
        self.result: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result.append(self._call())
        except BaseException as error:
            self.error = error
        finally:
            self._on_done()


def call_under_lease(lease: Lease, call: Callable[[], T]) -> T:
    """The result of `call`. Raises its error, or what `lease.check` raises as soon as the lease ends.

    A call that hangs in the network cannot be interrupted. Its thread is then abandoned; the next report of progress,
    or the check before a commit, stops it.
    """
    lease.check()
    done_or_ended = threading.Event()
    thread = _CallThread(call, on_done=done_or_ended.set)
    lease.on_end(done_or_ended.set)
    thread.start()
    done_or_ended.wait()
    if thread.error is not None:
        lease.check()  # the end of the lease may be the cause of the error
        raise thread.error
    if thread.result:
        return thread.result[0]
    lease.check()
    raise AssertionError("there is no result, no error and no end of the lease")


def retry_under_lease(
    lease: Lease,
    call: Callable[[], T],
    *,
    seconds: float,
    retry_on: tuple[type[ReplaceMeError], ...] = (HubUnreachable,),
) -> T:
    """The result of `call`, which is retried for at most `seconds` after the first error in `retry_on`.

    Where the Hub says when to come back, it is not asked before; such waits, of up to an hour in all, do not count.
    Raises the last error when that time is up, any other error at once, and what `lease.check` raises as soon as the
    lease ends, during a pause too. The lease is renewed meanwhile.
    """
    pause = FIRST_PAUSE_SECONDS
    deadline: float | None = None
    allowed = LONGEST_WAIT_SECONDS
    while True:
        try:
            return call_under_lease(lease, call)
        except retry_on as error:
            now = time.monotonic()
            deadline = now + seconds if deadline is None else deadline
            asked = (error.retry_after or 0.0) if isinstance(error, Unavailable) else 0.0
            if now >= deadline or asked > allowed:
                raise
            wait = max(asked, min(pause * random.uniform(0.5, 1.5), deadline - now))
            allowed -= asked
            deadline += asked
            logger.warning("job %s: %s; retrying in %.1f s", lease.claim.job_id, error.explained, wait)
        lease.ended.wait(wait)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
