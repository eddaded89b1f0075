"""The commands about jobs, from `plan` and `submit` to `logs`; `workers` and `families`, which run them."""

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any
from uuid import uuid4

import typer

from api.cli.exit_codes import ExitCode, exit_code_of_job
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
from api.cli.output.console import describe_time, make_console, print_json, print_line, print_note
from api.cli.output.jobs import event_line, jobs_table, metrics_table, print_job, print_plan, workers_table
from api.cli.service import (
    CancelOnInterrupt,
    Cursor,
    JobId,
    Label,
    One,
    Service,
    Timeout,
    Wait,
    asks_service,
    finish,
    interrupts,
    print_notice,
    watch,
)
from api.cli.webhooks import print_secret
from api.client.client import is_idempotency_key, with_zone
from replaceme_core.report.reading import Report
from replaceme_core.request.fields import ending_of
from replaceme_core.request.removal import families as families_here
from replaceme_core.shapes import Family, Page, Plan
from replaceme_core.wording import counted


def check_key(text: str | None) -> str | None:
    if text is not None and not is_idempotency_key(text):
        raise typer.BadParameter(f"expected 1 to 255 visible ASCII characters, got {text!r}")
    return text


IdempotencyKey = Annotated[
    str | None,
    typer.Option(
        callback=check_key,
        help="Key of this job: submitting again with the same key creates no second job. Default: random.",
    ),
]


@with_job_options()
@asks_service()
def submit(
    service: Service,
    *,
    file: JobFile = None,
    idempotency_key: IdempotencyKey = None,
    wait: Wait = False,
    timeout: Timeout = None,
    cancel_on_interrupt: CancelOnInterrupt = False,
    junit: Junit = None,
    **options: Any,
) -> None:
    request = _checked_body(file, options)
    waits = wait or timeout is not None or cancel_on_interrupt
    if junit is not None and not waits:
        raise typer.BadParameter("--junit needs --wait, or --timeout", param_hint="--junit")
    if isinstance(request.get("ratio"), list):
        for name, given in (("--cancel-on-interrupt", cancel_on_interrupt), ("--junit", junit is not None)):
            if given:
                raise typer.BadParameter(f"{name} is for one job; give one ratio", param_hint=name)
        _submit_sweep(service, request, key=idempotency_key or uuid4().hex, waits=waits, timeout=timeout)
        return
    with interrupts(wanted=cancel_on_interrupt) as held:
        if request.get("validate_only"):
            _print_plan(service, service.client.validate(request))
            return
        job = service.client.submit(request, idempotency_key=idempotency_key or uuid4().hex)
        if job.webhook is not None and (waits or not service.as_json):  # a job that has ended comes without it
            print_secret(job.webhook)
        finish(service, job, wait=wait, timeout=timeout, held=held, junit=junit)


def _submit_sweep(
    service: Service, request: Mapping[str, object], *, key: str, waits: bool, timeout: float | None
) -> None:
    """Print the jobs of a sweep, or wait for their ends first; the exit code is that of the first that has failed.

    With a `timeout` that has passed: as they are then.
    """
    if request.get("validate_only"):
        raise typer.BadParameter("a sweep is not validated; give one ratio", param_hint="--validate-only")
    jobs = service.client.submit_sweep(request, idempotency_key=key)
    print_note(f"{counted(len(jobs), 'jobs')}; see: replaceme list --label sweep={jobs[0].labels['sweep']}")
    for job in jobs:
        print_notice(job)
        if job.webhook is not None and (waits or not service.as_json):
            print_secret(job.webhook)
    if waits:
        until = None if timeout is None else time.monotonic() + timeout
        jobs = tuple(
            watch(service, job, timeout=None if until is None else max(until - time.monotonic(), 0), held=None)
            for job in jobs
        )
    service.show_list(jobs, jobs_table, nothing="no jobs")
    if timeout is not None and (going := sum(not job.is_terminal for job in jobs)):
        print_note(f"error: not ended after {timeout:g} s: {going} of {len(jobs)} jobs; they continue")
        raise typer.Exit(int(ExitCode.TIMED_OUT))
    raise typer.Exit(next((code for job in jobs if job.is_terminal and (code := exit_code_of_job(job))), 0))


@with_job_options(without=NOT_OF_A_PLAN)
@asks_service()
def plan(service: Service, *, file: JobFile = None, **options: Any) -> None:
    body = _checked_body(file, options)
    request = {name: value for name, value in body.items() if name not in NOT_OF_A_PLAN}
    _print_plan(service, service.client.plan(request))


def _checked_body(file: str | None, options: dict[str, object]) -> dict[str, object]:
    body = request_body(options, file=None if file is None else read_job_file(file))
    check_request(body)
    return body


def _print_plan(service: Service, plan: Plan) -> None:
    if service.as_json:
        print_json(plan.model_dump(mode="json"))
    else:
        print_plan(make_console(stderr=False), plan)
    if plan.refusals:
        raise typer.Exit(int(ExitCode.BAD_INPUT))


Model = Annotated[str | None, typer.Option(help="Only jobs on this original model, org/name.")]


def check_time(at: datetime | None) -> datetime | None:
    """A callback for options: refuses a time that is not within the years 1 to 9999 in every zone."""
    try:
        with_zone(at)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"expected a time within the years 1 to 9999, got {at}") from None
    return at


CreatedAfter = Annotated[
    datetime | None, typer.Option(callback=check_time, help="Only jobs created after this local time.")
]
CreatedBefore = Annotated[
    datetime | None, typer.Option(callback=check_time, help="Only jobs created before this local time.")
]


@asks_service()
def status(service: Service, job_id: JobId) -> None:
    print_job(service.client.job(job_id), as_json=service.as_json)


@asks_service()
def list_jobs(
    service: Service,
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
) -> None:
    page = service.client.jobs(
        status=with_status or (),
        labels=parse_labels(label or []),
        model=model,
        created_after=created_after,
        created_before=created_before,
        sort=sort,
        limit=limit,
        cursor=cursor,
    )
    service.show_list(page.items, jobs_table, nothing="no jobs", cursor=page.next_cursor)


@asks_service()
def cancel(
    service: Service,
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
) -> None:
    filters: dict[str, object] = {
        "status": with_status,
        "labels": parse_labels(label or []),
        "model": model,
        "created_after": with_zone(created_after),
        "created_before": with_zone(created_before),
        "all": every,
    }
    given = {name: value for name, value in filters.items() if value}
    if (job_id is None) is not bool(given):
        raise typer.BadParameter("name a job, or give --all or which jobs", param_hint="ID")
    if job_id is None:
        cancelled = service.client.cancel_matching(given)
        if service.as_json:
            print_json({"items": [one.model_dump(mode="json") for one in cancelled], "more": False})
        else:
            for one in cancelled:
                print_line(f"{one.id}  {one.status}")
        print_note(f"cancelled or being stopped: {counted(len(cancelled), 'jobs')}")
        return
    job = service.client.cancel(job_id)
    print_job(job, as_json=service.as_json)
    if not job.is_terminal:
        print_note("the job is being stopped")


@asks_service()
def retry(
    service: Service,
    job_id: JobId,
    *,
    idempotency_key: IdempotencyKey = None,
    wait: Wait = False,
    timeout: Timeout = None,
    cancel_on_interrupt: CancelOnInterrupt = False,
) -> None:
    with interrupts(wanted=cancel_on_interrupt) as held:
        job = service.client.retry(job_id, idempotency_key=idempotency_key or uuid4().hex)
        output = Report(job.spec).text("output", "repo_id")
        is_new = output.endswith(ending_of(job.id))
        print_note(f"the result goes to {output}, {'a new repository' if is_new else 'as that of the job it repeats'}")
        finish(service, job, wait=wait, timeout=timeout, held=held)


@asks_service()
def delete(
    service: Service,
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="IDs of jobs that have ended.")],
) -> None:
    found = [service.whole_id(given) for given in job_ids]
    for job_id in found:
        service.client.delete(job_id)
        print_note(f"job {job_id} is deleted")  # with --json too: the next one may fail
    if service.as_json:
        print_json({"deleted": found})


@asks_service()
def workers(service: Service) -> None:
    service.show_list(service.client.workers(), workers_table, nothing="no workers")


@asks_service()
def metrics(service: Service, job_id: JobId) -> None:
    service.show_list(service.client.metrics(job_id), metrics_table, nothing="no metrics")


@asks_service()
def events(
    service: Service,
    job_id: JobId,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Print new events until the job has ended.")] = False,
) -> None:
    found = service.client.stream(job_id) if follow else service.client.history(job_id)
    _print_each(found, event_line, follow=follow, as_json=service.as_json)


@asks_service()
def logs(
    service: Service,
    job_id: JobId,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Print new lines until the job has ended.")] = False,
) -> None:
    found = service.client.follow_log(job_id) if follow else service.client.log(job_id)
    _print_each(found, lambda line: f"{describe_time(line.at)}  {line.text}", follow=follow, as_json=service.as_json)


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


@asks_service(without="URL of a service to ask. Without it, the list of this version is printed.")
def families(service: Service) -> None:
    found = families_here() if service.url is None else service.client.families()
    if service.as_json:
        print_json(Page[Family](items=found).model_dump(mode="json"))
        return
    for family in found:
        structures = f"maps: {', '.join(family.structures)}" if family.structures else None
        reads = "reads images" if family.inputs == "images" else None
        details = "; ".join(filter(None, (reads, ", ".join(family.methods), structures, family.reason)))
        print_line(f"{family.model_type:<20} {details}")
    print_line(f"{'any other':<20} not supported: where its blocks write to the residual stream is unknown")
