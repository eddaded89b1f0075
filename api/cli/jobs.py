"""`status`, `list`, `cancel`, `retry`, `delete`, `workers`: commands about jobs that were submitted."""

from datetime import datetime
from typing import Annotated
from uuid import uuid4

import typer

from api.cli.job_request import parse_labels
from api.cli.output.console import JsonFlag, make_console, print_json, print_line, print_note
from api.cli.output.jobs import jobs_table, print_job, workers_table
from api.cli.service import ApiKeyOption, JobId, Url, connect
from api.cli.submit import IdempotencyKey
from api.cli.watching import CancelOnInterrupt, Timeout, Wait, finish, interrupts
from api.client.client import DEFAULT_URL
from replaceme_core.report.reading import Report
from replaceme_core.request.fields import ending_of
from replaceme_core.wording import counted

Label = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Only jobs with this label. Repeatable; a job must have all of them."),
]
Model = Annotated[str | None, typer.Option(help="Only jobs on this original model, org/name.")]
CreatedAfter = Annotated[datetime | None, typer.Option(help="Only jobs created after this local time.")]
CreatedBefore = Annotated[datetime | None, typer.Option(help="Only jobs created before this local time.")]


def status(job_id: JobId, *, url: Url = DEFAULT_URL, api_key: ApiKeyOption = None, as_json: JsonFlag = False) -> None:
    with connect(url, api_key=api_key, as_json=as_json) as client:
        print_job(client.job(job_id), as_json=as_json)


def list_jobs(
    *,
    with_status: Annotated[
        list[str] | None,
        typer.Option(
            "--status", help="Only jobs that are queued, running, succeeded, failed or cancelled. Repeatable."
        ),
    ] = None,
    label: Label = None,
    model: Model = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    sort: Annotated[
        str | None,
        typer.Option(help="-created_at (default), created_at, -finished_at or finished_at; - is newest first."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of jobs.")] = None,
    cursor: Annotated[str | None, typer.Option(help="Continue after a page: the next_cursor of its JSON.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    with connect(url, api_key=api_key, as_json=as_json) as client:
        page = client.jobs(
            status=with_status or (),
            labels=parse_labels(label or []),
            model=model,
            created_after=created_after,
            created_before=created_before,
            sort=sort,
            limit=limit,
            cursor=cursor,
        )
    if as_json:
        print_json(page.model_dump(mode="json"))
    elif page.items:
        make_console(stderr=False).print(jobs_table(page.items))
    else:
        print_note("no jobs")
    if page.next_cursor and not as_json:
        print_note(f"there are more: --cursor {page.next_cursor}")


def cancel(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="ID of the job.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All of your queued and running jobs.")] = False,
    with_status: Annotated[
        list[str] | None, typer.Option("--status", help="Jobs that are queued, or running. Repeatable.")
    ] = None,
    label: Label = None,
    model: Model = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    filters: dict[str, object] = {
        "status": with_status,
        "labels": parse_labels(label or []),
        "model": model,
        "created_after": None if created_after is None else created_after.astimezone().isoformat(),
        "created_before": None if created_before is None else created_before.astimezone().isoformat(),
        "all": every,
    }
    given = {name: value for name, value in filters.items() if value}
    if (job_id is None) is not bool(given):
        raise typer.BadParameter("name a job, or give --all or which jobs", param_hint="ID")
    with connect(url, api_key=api_key, as_json=as_json) as client:
        if job_id is None:
            cancelled = client.cancel_matching(given)
            if as_json:
                print_json({"items": [one.model_dump(mode="json") for one in cancelled], "more": False})
            for one in () if as_json else cancelled:
                print_line(f"{one.id}  {one.status}")
            print_note(f"cancelled or being stopped: {counted(len(cancelled), 'jobs')}")
            return
        job = client.cancel(job_id)
        print_job(job, as_json=as_json)
    if not job.is_terminal:
        print_note("the job is being stopped")


def retry(
    job_id: JobId,
    *,
    idempotency_key: IdempotencyKey = None,
    wait: Wait = False,
    timeout: Timeout = None,
    cancel_on_interrupt: CancelOnInterrupt = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    with (
        interrupts(wanted=cancel_on_interrupt) as held,
        connect(url, api_key=api_key, as_json=as_json) as client,
    ):
        job = client.retry(job_id, idempotency_key=idempotency_key or uuid4().hex)
        output = Report(job.spec).text("output", "repo_id")
        is_new = output.endswith(ending_of(job.id))
        print_note(f"the result goes to {output}, {'a new repository' if is_new else 'as that of the job it repeats'}")
        finish(client, job, wait=wait, timeout=timeout, held=held, as_json=as_json)


def delete(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="IDs of jobs that have ended.")],
    *,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    with connect(url, api_key=api_key, as_json=as_json) as client:
        for job_id in job_ids:
            client.delete(job_id)
            if not as_json:
                print_note(f"job {job_id} is deleted")
    if as_json:
        print_json({"deleted": job_ids})


def workers(*, url: Url = DEFAULT_URL, api_key: ApiKeyOption = None, as_json: JsonFlag = False) -> None:
    with connect(url, api_key=api_key, as_json=as_json) as client:
        found = client.workers()
    if as_json:
        print_json({"items": [one.model_dump(mode="json") for one in found], "next_cursor": None})
    elif found:
        make_console(stderr=False).print(workers_table(found))
    else:
        print_note("no workers")
