"""The Celery task. Its message wakes a worker up; the database decides which job starts, if any."""

import os
from functools import cache

from celery import Task

from replaceme_core import telemetry
from replaceme_core.hub.open import open_hub
from replaceme_core.ledger.database import Database
from replaceme_core.settings import RUN_JOB_TASK, Settings
from replaceme_core.telemetry import bound, from_message
from worker.app import app, confinements, drain, enqueue, served_worker_kinds
from worker.supervisor import Supervisor


@app.task(name=RUN_JOB_TASK, ignore_result=True, bind=True)  # type: ignore[untyped-decorator]
def run_job(task: Task, job_id: str) -> None:
    if drain.has_begun:  # the message was prefetched: send it to another worker
        queue, headers = task.request.delivery_info["routing_key"], task.request.headers
        app.send_task(RUN_JOB_TASK, args=[job_id], queue=queue, headers=headers)
        return
    with bound(from_message(task.request.headers)):
        _supervisor(os.getpid()).run(job_id)


@cache
def _supervisor(_pid: int) -> Supervisor:
    """One supervisor for each process, because connections to a database do not survive a fork."""
    settings = Settings()
    telemetry.configure_spans(os.environ, service="worker")  # here: its thread does not survive a fork either
    return Supervisor(
        settings=settings,
        database=Database(settings.resolved_database_url),
        open_hub=lambda: open_hub(settings),
        confinement=confinements[0],
        worker_kinds=served_worker_kinds(),
        enqueue=enqueue,
        must_release=lambda: drain.must_release,
    )
