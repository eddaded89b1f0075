"""`submit`, `status`, `list`, `cancel`, `events`, `families`: a thin client of the service."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated
from uuid import uuid4

import typer

from api.cli import method as options
from api.cli.calibration import SelfGenerated
from api.cli.checks import finite
from api.cli.console import Failure, make_console, print_json, progress_shown, say
from api.cli.exits import ExitCode, exit_code_of_job, exit_code_of_status
from api.cli.tables import event_line, job_table, jobs_table
from api.client.client import DEFAULT_URL, Client, Refused, ServiceError
from api.client.models import Family, Job, Page
from replaceme_core.admission.family_options import methods_of, structures_of
from replaceme_core.families.layout import Refusal
from replaceme_core.families.table import limits, listing
from replaceme_core.spec import Method

Url = Annotated[str, typer.Option("--url", envvar="REPLACEME_URL", help="Address of the service.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")]


def parse_drop(text: str | None) -> list[int] | None:
    """
    >>> parse_drop("3,12-14")
    [3, 12, 13, 14]
    """
    if text is None:
        return None
    blocks: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(part) > 20:
            raise typer.BadParameter(
                f"expected block numbers such as 12,13 or 12-19, got {text!r}", param_hint="--drop"
            )
        if dash and not int(first) <= int(last) < int(first) + 10_000:
            raise typer.BadParameter(f"{part.strip()!r} is not a range of blocks", param_hint="--drop")
        blocks += range(int(first), int(last) + 1) if dash else [int(first)]
    return blocks


def parse_labels(texts: list[str]) -> dict[str, str]:
    """
    >>> parse_labels(["team=nlp"])
    {'team': 'nlp'}
    """
    labels: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--label")
        labels[name] = value
    return labels


def visible(text: str | None) -> str | None:
    if text is not None and re.fullmatch("[!-~]{1,255}", text) is None:
        raise typer.BadParameter(f"expected 1 to 255 visible ASCII characters, got {text!r}")
    return text


def register(app: typer.Typer) -> None:
    app.command("submit")(submit)
    app.command("status")(status)
    app.command("list")(list_jobs)
    app.command("cancel")(cancel)
    app.command("events")(events)
    app.command("families")(families)


def submit(
    *,
    model: Annotated[str, typer.Option(help="The model, as org/name.")],
    calibration: Annotated[str, typer.Option(help="builtin:pydoc-topics, file:NAME.txt or a data set as org/name.")],
    ratio: Annotated[float | None, typer.Option(callback=finite, help="Fraction of the blocks to remove.")] = None,
    drop: Annotated[str | None, typer.Option(help="The blocks to remove instead: 12,13 or 12-19.")] = None,
    method: Annotated[str | None, typer.Option(help=f"One of {', '.join(Method)}.")] = None,
    ridge: options.Ridge = None,
    replays: options.Replays = None,
    groups: options.Groups = None,
    loss: options.LossOption = None,
    structure: options.StructureOption = None,
    as_published: options.AsPublished = False,
    selection: options.SelectionOption = None,
    ridge_later: options.RidgeLater = None,
    time_budget: options.TimeBudget = None,
    self_generated: SelfGenerated = None,
    output: Annotated[str | None, typer.Option(help="Repository for the result, as org/name.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="May be repeated.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda ...: also decides which workers may take the job.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(help="Parts of the calibration, for idle workers to share (least_squares, drop).")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 9; 9 goes first.")] = None,
    max_queue_seconds: Annotated[
        float | None, typer.Option(callback=finite, help="The job fails if it has not started by then.")
    ] = None,
    max_runtime_seconds: Annotated[
        float | None, typer.Option(callback=finite, help="The job fails if it has not ended so long after its start.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            callback=visible, help="Stands for this job: sent again, it makes no second one. Random if absent."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until the job has ended.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="Seconds to wait at most; the job goes on after that.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Send a job to the service."""
    text = calibration if not self_generated else {"dataset": calibration, "self_generated": self_generated}
    request: dict[str, object] = {"model": model, "calibration": text}
    of_method = options.method_field(
        method,
        ridge=ridge,
        replays=replays,
        groups=groups,
        loss=loss,
        structure=structure,
        as_published=as_published,
        selection=selection,
        ridge_later=ridge_later,
        time_budget_seconds=time_budget,
    )
    optional = {"ratio": ratio, "drop": parse_drop(drop), "method": of_method or None, "output": output}
    optional |= {"priority": priority}
    optional |= {"max_queue_seconds": max_queue_seconds, "max_runtime_seconds": max_runtime_seconds}
    request |= {name: value for name, value in optional.items() if value is not None}
    if compute := {name: value for name, value in (("device", device), ("shards", shards)) if value is not None}:
        request["compute"] = compute
    if label:
        request["labels"] = parse_labels(label)
    with _service(url, as_json=as_json) as client:
        job = client.submit(request, idempotency_key=idempotency_key or uuid4().hex)
        if wait or timeout is not None:
            job = _watch(client, job, timeout=timeout, as_json=as_json)
        _show(job, as_json=as_json)
    if job.is_terminal:
        raise typer.Exit(int(exit_code_of_job(job.status)))


def status(job_id: JobId, *, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Show a job."""
    with _service(url, as_json=as_json) as client:
        _show(client.job(job_id), as_json=as_json)


def list_jobs(
    *,
    with_status: Annotated[str | None, typer.Option("--status", help="Only jobs in this status.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only jobs with it.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many at most.")] = None,
    cursor: Annotated[str | None, typer.Option(help="Go on where a list ended: its next_cursor.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    with _service(url, as_json=as_json) as client:
        page = client.jobs(status=with_status, labels=parse_labels(label or []), limit=limit, cursor=cursor)
    if as_json:
        print_json(page.model_dump(mode="json"))
    elif page.items:
        make_console(stderr=False).print(jobs_table(page.items))
    else:
        say("no jobs")
    if page.next_cursor and not as_json:
        say(f"there are more: --cursor {page.next_cursor}")


def cancel(job_id: JobId, *, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Cancel a job; a running one ends within seconds."""
    with _service(url, as_json=as_json) as client:
        job = client.cancel(job_id)
        _show(job, as_json=as_json)
    if not job.is_terminal:
        say("the job was running; it is being ended")


def events(
    job_id: JobId,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job has ended.")] = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Show the history of a job."""
    seen = []
    with _service(url, as_json=as_json) as client:
        for event in client.follow(job_id) if follow else client.history(job_id):
            seen.append(event.model_dump(mode="json"))
            if not as_json:
                typer.echo(event_line(event))
            elif follow:
                say(event_line(event))
    if as_json:
        print_json({"items": seen, "next_cursor": None})


def families(
    *,
    url: Annotated[
        str | None, typer.Option("--url", envvar="REPLACEME_URL", help="Ask this service; else this installation.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the families of models that can be compressed, and why others are refused."""
    if url is None:
        found = tuple(
            Family(model_type=row.model_type, supported=False, methods=(), reason=row.reason)
            if isinstance(row, Refusal)
            else Family(
                model_type=row.model_type,
                methods=tuple(methods_of(row)),
                structures=structures_of(row),
                reason=limits(row),
            )
            for row in listing()
        )
    else:
        with _service(url, as_json=as_json) as client:
            found = client.families()
    if as_json:
        print_json(Page[Family](items=found).model_dump(mode="json"))
        return
    for family in found:
        maps = f"maps: {', '.join(family.structures)}" if family.structures else None
        told = "; ".join(filter(None, (", ".join(family.methods), maps, family.reason)))
        typer.echo(f"{family.model_type:<20} {told}")
    typer.echo(f"{'any other':<20} not supported: where its blocks write to the stream is not known, nor guessed")


def _show(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json(job.model_dump(mode="json"))
    else:
        make_console(stderr=False).print(job_table(job))


def _watch(client: Client, submitted: Job, *, timeout: float | None, as_json: bool) -> Job:
    """Show progress until the job has ended, or leave with `TIMED_OUT` while it goes on."""
    job = submitted
    say(f"job {job.id}")
    try:
        with progress_shown(make_console(stderr=True), clock=time.monotonic) as show:
            for job in client.watch(submitted.id, timeout=timeout):
                show(job.stage or job.status, job.progress.overall, job.progress.eta_seconds)
    except TimeoutError as error:
        _show(job, as_json=as_json)
        raise Failure(f"{error}; it goes on: replaceme status {job.id}", ExitCode.TIMED_OUT) from error
    except KeyboardInterrupt:
        say(f"the job goes on: replaceme status {job.id}, replaceme cancel {job.id}")
        raise
    return job


@contextmanager
def _service(url: str, *, as_json: bool) -> Iterator[Client]:
    """A client whose errors end the command with the sentence and the exit code they deserve."""
    try:
        with Client(url) as client:
            yield client
    except Refused as error:
        problem = error.problem
        raise Failure(
            str(error),
            exit_code_of_status(problem.status),
            code=problem.code,
            errors=tuple(each.model_dump(mode="json") for each in problem.errors),
            as_json=as_json,
        ) from error
    except ServiceError as error:
        raise Failure(str(error), ExitCode.SERVICE_UNREACHABLE, code="service_unreachable", as_json=as_json) from error
