"""A runner process under a lease: when the lease ends, the runner and all that it started are ended too."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from replaceme_core.errors import ReplaceMeError
from replaceme_core.plan.resources import planned_host_bytes
from replaceme_core.runner.confinement import Confinement
from replaceme_core.runner.process import RUNNER_COMMAND, Runner
from replaceme_core.runner.requests import ModelRequest
from replaceme_core.settings import Settings
from worker.lease import Lease

logger = logging.getLogger(__name__)


@contextmanager
def leased_runner(
    request: ModelRequest,
    *,
    lease: Lease,
    settings: Settings,
    confinement: Confinement,
    scratch: Path,
    flags: Sequence[str] = (),
    on_line: Callable[[str], None] = lambda line: None,
) -> Iterator[Runner]:
    """A runner that works on `request`. `on_line` gets each line of its log.

    Raises what `lease.check` raises rather than the errors that follow from it.
    """
    command: Sequence[str] = settings.runner_command or RUNNER_COMMAND
    lease.check()
    confinement = confinement.for_plan(partial(planned_host_bytes, request))
    runner = Runner([*command, *flags], request, scratch=scratch, confinement=confinement, on_line=on_line)
    with runner:
        lease.on_end(partial(_end, runner, lease, grace_seconds=settings.cancel_grace_seconds))
        try:
            yield runner
        except ReplaceMeError:
            lease.check()  # the end of the lease may be the cause of the error
            log_tail(runner, lease.claim.job_id)
            raise


def log_tail(runner: Runner, job_id: str) -> None:
    """Log what the runner wrote last: the message of a failed job does not say where things are on this machine."""
    lines = "\n".join(runner.end_of_log())
    logger.error("job %s: last lines of the runner's log", job_id, extra={"lines": lines})


def _end(runner: Runner, lease: Lease, *, grace_seconds: float) -> None:
    """Called in the lease's thread, so it must not block."""
    if lease.lost:
        runner.kill()
    else:
        grace = {"grace_seconds": grace_seconds}
        threading.Thread(target=runner.terminate, kwargs=grace, name="end-runner", daemon=True).start()
