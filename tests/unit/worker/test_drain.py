import os

from benchmarks.harness.processes import wait_until
from worker.app import Drain


def test_first_no_new_job_then_the_release() -> None:
    drain = Drain()
    assert (drain.has_begun, drain.must_release) == (False, False)
    drain.begin(seconds=0.2)
    assert (drain.has_begun, drain.must_release) == (True, False)
    wait_until(lambda: drain.must_release, seconds=5, what="the end of the grace")
    drain.begin(seconds=60)
    assert drain.must_release, "a second signal gives no new time"


def test_no_grace_is_over_at_once() -> None:
    drain = Drain()
    drain.begin(seconds=60)
    drain.begin(seconds=0)
    assert drain.must_release


def test_a_process_that_was_forked_before_knows() -> None:
    drain = Drain()
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(ready, 1)
        os._exit(10 * drain.has_begun + drain.must_release)
    drain.begin(seconds=60)
    os.write(go, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
    os.close(ready)
    os.close(go)
