"""The doorbell: a message names a job, and the ledger says whether there is something to do."""

import os
from functools import cache

from celery import Task

from replaceme_core.hub.open import open_hub
from replaceme_core.jobs.session import Database
from replaceme_core.settings import RUN_JOB_TASK, Settings
from worker.app import app, drain, enqueue, served_worker_kinds
from worker.supervisor import Supervisor


@app.task(name=RUN_JOB_TASK, ignore_result=True, bind=True)  # type: ignore[untyped-decorator]
def run_job(task: Task, job_id: str) -> None:
    if drain.has_begun:  # a message that was taken in advance: for someone else now
        app.send_task(RUN_JOB_TASK, args=[job_id], queue=task.request.delivery_info["routing_key"])
        return
    _supervisor(os.getpid()).run(job_id)


@cache
def _supervisor(_pid: int) -> Supervisor:
    """One for each process: connections to a database do not survive a fork."""
    settings = Settings()
    return Supervisor(
        settings=settings,
        database=Database(settings.resolved_database_url),
        open_hub=lambda: open_hub(settings),
        worker_kinds=served_worker_kinds(),
        enqueue=enqueue,
        is_over=lambda: drain.is_over,
        takes_no_more=lambda: drain.has_begun,
    )
