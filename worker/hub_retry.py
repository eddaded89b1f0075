"""Slow work on the Hub that ends when the lease does, and is tried again while the Hub does not answer."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from replaceme_core.errors import HubUnreachable, ReplaceMeError
from worker.lease import Lease

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0

T = TypeVar("T")

logger = logging.getLogger(__name__)


class _Work(threading.Thread, Generic[T]):
    """One call in a thread of its own, with its result or its error."""

    def __init__(self, call: Callable[[], T], *, when_done: Callable[[], None]) -> None:
        super().__init__(name="hub", daemon=True)
        self._call = call
        self._when_done = when_done
        self.result: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result.append(self._call())
        except BaseException as error:
            self.error = error
        finally:
            self._when_done()


def until_lease_ends(lease: Lease, call: Callable[[], T]) -> T:
    """The result of `call`, or what `lease.check` raises as soon as the lease ends.

    A call that hangs in the network cannot be interrupted; it is then left behind in its thread, where the next report
    of progress, or the check before a commit, stops it.
    """
    lease.check()
    wake = threading.Event()
    work = _Work(call, when_done=wake.set)
    lease.on_end(wake.set)
    work.start()
    wake.wait()
    if work.error is not None:
        lease.check()  # the error is the consequence, not the cause
        raise work.error
    if work.result:
        return work.result[0]
    lease.check()
    raise AssertionError("woken without a result, an error or the end of the lease")


def patiently(
    lease: Lease,
    call: Callable[[], T],
    *,
    seconds: float,
    again: tuple[type[ReplaceMeError], ...] = (HubUnreachable,),
) -> T:
    """Try `call` until it gives a result, for at most `seconds` from the first error in `again`; then raise that.

    Raises what `lease.check` does as soon as the lease ends, in a pause as well.
    """
    pause = FIRST_PAUSE_SECONDS
    deadline: float | None = None
    while True:
        try:
            return until_lease_ends(lease, call)
        except again as error:
            now = time.monotonic()
            deadline = now + seconds if deadline is None else deadline
            if now >= deadline:
                raise
            wait = min(pause * random.uniform(0.5, 1.5), deadline - now)
            logger.warning("job %s: %s; trying again in %.1f s", lease.claim.job_id, error, wait)
        lease.ended.wait(wait)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
