"""The commands about jobs, from `plan` and `submit` to `logs`; `workers` and `families`, which run them."""

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated, Any
from uuid import uuid4

import typer

from api.cli.exit_codes import ExitCode
from api.cli.job_request import (
    NOT_OF_A_PLAN,
    JobFile,
    check_request,
    parse_labels,
    read_job_file,
    request_body,
    with_job_options,
)
from api.cli.output.ci import Junit
from api.cli.output.console import JsonFlag, describe_time, make_console, print_json, print_line, print_note
from api.cli.output.jobs import event_line, jobs_table, metrics_table, print_job, print_plan, workers_table
from api.cli.service import (
    ApiKeyOption,
    CancelOnInterrupt,
    Cursor,
    JobId,
    Label,
    One,
    Timeout,
    Url,
    Wait,
    connect,
    finish,
    interrupts,
    print_items,
)
from api.cli.webhooks import print_secret
from api.client.client import DEFAULT_URL
from replaceme_core.report.reading import Report
from replaceme_core.request.fields import ending_of
from replaceme_core.request.removal import families as families_here
from replaceme_core.shapes import Family, LogLine, Page, Plan
from replaceme_core.wording import counted


def check_key(text: str | None) -> str | None:
    if text is not None and re.fullmatch("[!-~]{1,255}", text) is None:
        raise typer.BadParameter(f"expected 1 to 255 visible ASCII characters, got {text!r}")
    return text


IdempotencyKey = Annotated[
    str | None,
    typer.Option(
        callback=check_key,
        help="Key of this job: submitting again with the same key creates no second job. Default: random.",
    ),
]


def submit(
    *,
    file: JobFile = None,
    idempotency_key: IdempotencyKey = None,
    wait: Wait = False,
    timeout: Timeout = None,
    cancel_on_interrupt: CancelOnInterrupt = False,
    junit: Junit = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
    **options: Any,
) -> None:
    request = _checked_body(file, options, as_json=as_json)
    if junit is not None and not (wait or timeout is not None or cancel_on_interrupt):
        raise typer.BadParameter("--junit needs --wait, or --timeout", param_hint="--junit")
    with (
        interrupts(wanted=cancel_on_interrupt) as held,
        connect(url, api_key=api_key, as_json=as_json) as client,
    ):
        if request.get("validate_only"):
            _print_plan(client.validate(request), as_json=as_json)
            return
        job = client.submit(request, idempotency_key=idempotency_key or uuid4().hex)
        if job.notice is not None:
            print_note(f"{job.notice} (--idempotency-key)")
        if job.webhook is not None and not as_json:
            print_secret(job.webhook)
        finish(client, job, wait=wait, timeout=timeout, held=held, junit=junit, as_json=as_json)


def plan(
    *,
    file: JobFile = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
    **options: Any,
) -> None:
    body = _checked_body(file, options, as_json=as_json)
    request = {name: value for name, value in body.items() if name not in NOT_OF_A_PLAN}
    with connect(url, api_key=api_key, as_json=as_json) as client:
        found = client.plan(request)
    _print_plan(found, as_json=as_json)


with_job_options(submit)
with_job_options(plan, without=NOT_OF_A_PLAN)


def _checked_body(file: str | None, options: dict[str, object], *, as_json: bool) -> dict[str, object]:
    given = None if file is None else read_job_file(file, as_json=as_json)
    body = request_body(options, file=given)
    check_request(body, as_json=as_json)
    return body


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        print_json(plan.model_dump(mode="json"))
    else:
        print_plan(make_console(stderr=False), plan)
    if plan.refusals:
        raise typer.Exit(int(ExitCode.BAD_INPUT))


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
    cursor: Cursor = None,
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
    print_items(page.items, jobs_table, nothing="no jobs", cursor=page.next_cursor, as_json=as_json)


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
    print_items(found, workers_table, nothing="no workers", as_json=as_json)


def events(
    job_id: JobId,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Print new events until the job has ended.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    with connect(url, api_key=api_key, as_json=as_json) as client:
        found = client.stream(job_id) if follow else client.history(job_id)
        _print_each(found, event_line, follow=follow, as_json=as_json)


def logs(
    job_id: JobId,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Print new lines until the job has ended.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    with connect(url, api_key=api_key, as_json=as_json) as client:
        found = client.follow_log(job_id) if follow else client.log(job_id)
        _print_each(found, _log_line, follow=follow, as_json=as_json)


def _print_each(found: Iterable[One], line_of: Callable[[One], str], *, follow: bool, as_json: bool) -> None:
    """A line for each as it comes; with `as_json` one object at the end, and the lines apart if there may be more."""
    printed = []
    for one in found:
        printed.append(one.model_dump(mode="json"))
        if not as_json:
            print_line(line_of(one))
        elif follow:
            print_note(line_of(one))
    if as_json:
        print_json({"items": printed, "next_cursor": None})


def _log_line(line: LogLine) -> str:
    return f"{describe_time(line.at)}  {line.text}"


def metrics(job_id: JobId, *, url: Url = DEFAULT_URL, api_key: ApiKeyOption = None, as_json: JsonFlag = False) -> None:
    with connect(url, api_key=api_key, as_json=as_json) as client:
        found = client.metrics(job_id)
    if as_json:
        print_json({"items": [one.model_dump() | {"at": one.at.isoformat()} for one in found], "next_cursor": None})
    elif found:
        make_console(stderr=False).print(metrics_table(found))
    else:
        print_note("no metrics")


def families(
    *,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            envvar="REPLACEME_URL",
            help="URL of a service to ask. Without it, the list of this version is printed.",
        ),
    ] = None,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    if url is None:
        found = families_here()
    else:
        with connect(url, api_key=api_key, as_json=as_json) as client:
            found = client.families()
    if as_json:
        print_json(Page[Family](items=found).model_dump(mode="json"))
        return
    for family in found:
        structures = f"maps: {', '.join(family.structures)}" if family.structures else None
        details = "; ".join(filter(None, (", ".join(family.methods), structures, family.reason)))
        print_line(f"{family.model_type:<20} {details}")
    print_line(f"{'any other':<20} not supported: where its blocks write to the residual stream is unknown")
