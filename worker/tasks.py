"""The doorbell: a message names a job, and the ledger says whether there is something to do."""

import os
from functools import cache

from replaceme_core.hub.open import open_hub
from replaceme_core.jobs.session import Database
from replaceme_core.settings import RUN_JOB_TASK, Settings
from worker.app import app
from worker.supervisor import Supervisor


@app.task(name=RUN_JOB_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    _supervisor(os.getpid()).run(job_id)


@cache
def _supervisor(_pid: int) -> Supervisor:
    """One for each process: connections to a database do not survive a fork."""
    settings = Settings()
    return Supervisor(
        settings=settings,
        database=Database(settings.resolved_database_url),
        open_hub=lambda: open_hub(settings),
    )
