"""`status`, `list`, `cancel`, `events`: commands about jobs that were submitted."""

from typing import Annotated

import typer

from api.cli.options.labels import parse_labels
from api.cli.output.console import JsonFlag, make_console, print_json, print_note
from api.cli.output.tables import event_line, job_table, jobs_table
from api.cli.service import ApiKeyOption, JobId, Url, connect
from api.client.client import DEFAULT_URL
from api.client.models import Job


def status(job_id: JobId, *, url: Url = DEFAULT_URL, api_key: ApiKeyOption = None, as_json: JsonFlag = False) -> None:
    """Show a job."""
    with connect(url, api_key=api_key, as_json=as_json) as client:
        print_job(client.job(job_id), as_json=as_json)


def list_jobs(
    *,
    with_status: Annotated[
        str | None, typer.Option("--status", help="Only jobs that are queued, running, succeeded, failed or cancelled.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only jobs with this label. Repeatable; a job must have all of them."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of jobs.")] = None,
    cursor: Annotated[str | None, typer.Option(help="Continue after a page: the next_cursor of its JSON.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    with connect(url, api_key=api_key, as_json=as_json) as client:
        page = client.jobs(status=with_status, labels=parse_labels(label or []), limit=limit, cursor=cursor)
    if as_json:
        print_json(page.model_dump(mode="json"))
    elif page.items:
        make_console(stderr=False).print(jobs_table(page.items))
    else:
        print_note("no jobs")
    if page.next_cursor and not as_json:
        print_note(f"there are more: --cursor {page.next_cursor}")


def cancel(job_id: JobId, *, url: Url = DEFAULT_URL, api_key: ApiKeyOption = None, as_json: JsonFlag = False) -> None:
    """Cancel a job. A running job stops within seconds."""
    with connect(url, api_key=api_key, as_json=as_json) as client:
        job = client.cancel(job_id)
        print_job(job, as_json=as_json)
    if not job.is_terminal:
        print_note("the job is being stopped")


def events(
    job_id: JobId,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Print new events until the job has ended.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the events of a job."""
    printed = []
    with connect(url, api_key=api_key, as_json=as_json) as client:
        for event in client.follow(job_id) if follow else client.history(job_id):
            printed.append(event.model_dump(mode="json"))
            if not as_json:
                typer.echo(event_line(event))
            elif follow:
                print_note(event_line(event))
    if as_json:
        print_json({"items": printed, "next_cursor": None})


def print_job(job: Job, *, as_json: bool) -> None:
    """Print a job on standard output, as a table or as JSON."""
    if as_json:
        print_json(job.model_dump(mode="json"))
    else:
        make_console(stderr=False).print(job_table(job))
