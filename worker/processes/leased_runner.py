"""A runner process under a lease: it ends when the lease does, and nothing of it is left behind."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from replaceme_core.errors import ReplaceMeError
from replaceme_core.runner.process import RUNNER_COMMAND, Runner, runner_environment
from replaceme_core.settings import Settings
from worker.lease import Lease

logger = logging.getLogger(__name__)


@contextmanager
def running(
    request: BaseModel, *, lease: Lease, settings: Settings, scratch: Path, flags: Sequence[str] = ()
) -> Iterator[Runner]:
    """The runner at work on `request`. Raises what `lease.check` does, in place of what follows from its end."""
    command: Sequence[str] = settings.runner_command or RUNNER_COMMAND
    environment = runner_environment(scratch)
    lease.check()
    with Runner([*command, *flags], request, environment=environment) as runner:
        lease.on_end(partial(_end, runner, lease, grace_seconds=settings.cancel_grace_seconds))
        try:
            yield runner
        except ReplaceMeError:
            lease.check()  # its death is the consequence, not the cause
            tail = "\n".join(runner.stderr_tail)
            logger.error("job %s: the runner's last words:\n%s", lease.claim.job_id, tail)
            raise


def _end(runner: Runner, lease: Lease, *, grace_seconds: float) -> None:
    """Called in the lease's thread, which must not be held up."""
    if lease.lost:
        runner.kill()
    else:
        grace = {"grace_seconds": grace_seconds}
        threading.Thread(target=runner.terminate, kwargs=grace, name="end-runner", daemon=True).start()
