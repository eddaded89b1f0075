"""`submit`: send a job to the service, and wait for it if asked to."""

import re
import time
from typing import Annotated
from uuid import uuid4

import typer

from api.cli.exit_codes import ExitCode, exit_code_of_job
from api.cli.failure import Failure
from api.cli.jobs import print_job
from api.cli.options import method as options
from api.cli.options.calibration import SEVERAL, General, JudgedOn, SelfGenerated, calibration_field, parse_sources
from api.cli.options.checks import finite
from api.cli.options.gate import Gate, parse_gate
from api.cli.options.labels import parse_labels
from api.cli.options.removal import Drop, PatternSafe, Ratio, parse_drop
from api.cli.options.tasks import Tasks, parse_tasks
from api.cli.output.ci import Ended, Junit, write_for_pipeline
from api.cli.output.console import JsonFlag, make_console, print_note
from api.cli.output.progress import progress_display
from api.cli.service import ApiKeyOption, Url, connect
from api.cli.webhooks import print_secret
from api.client.client import DEFAULT_URL, Client
from api.client.models import Job


def check_key(text: str | None) -> str | None:
    if text is not None and re.fullmatch("[!-~]{1,255}", text) is None:
        raise typer.BadParameter(f"expected 1 to 255 visible ASCII characters, got {text!r}")
    return text


def submit(
    *,
    model: Annotated[str, typer.Option(help="Model to compress, as org/name.")],
    calibration: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[=SHARE]",
            help=f"Calibration text: builtin:general, file:NAME.txt, or a Hub data set as org/name. {SEVERAL}",
        ),
    ],
    ratio: Ratio = None,
    drop: Drop = None,
    pattern_safe: PatternSafe = False,
    method: Annotated[str | None, typer.Option(help=options.METHOD_HELP)] = None,
    ridge: options.Ridge = None,
    replays: options.Replays = None,
    groups: options.Groups = None,
    loss: options.Loss = None,
    structure: options.Structure = None,
    as_published: options.AsPublished = False,
    selection: options.SelectionOption = None,
    ridge_later: options.RidgeLater = None,
    time_budget: options.TimeBudget = None,
    self_generated: SelfGenerated = None,
    general: General = None,
    judged_on: JudgedOn = None,
    tasks: Tasks = None,
    gate: Gate = None,
    output: Annotated[
        str | None,
        typer.Option(help="Repository for the result, as org/name. Default: a private one named after model and job."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Label for the job. Repeatable.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Device such as cpu or cuda; only workers that have it run the job. Default: the service decides."
        ),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            help="Number of parts of the calibration, which idle workers share (least_squares and drop only)."
        ),
    ] = None,
    credential: Annotated[
        str | None,
        typer.Option(help="Name of your credential for the Hub. Default: the service's own tokens."),
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Priority from 0 to 9; 9 starts first. Default: 5.")] = None,
    max_queue_seconds: Annotated[
        float | None, typer.Option(callback=finite, help="Fail the job if it has not started after this many seconds.")
    ] = None,
    max_runtime_seconds: Annotated[
        float | None,
        typer.Option(callback=finite, help="Fail the job if it has not ended this many seconds after its start."),
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(help="URL that receives the events of this job; its secret is shown once.")
    ] = None,
    webhook_event: Annotated[
        list[str] | None,
        typer.Option(help="Type of event for --webhook. Repeatable. Default: succeeded, failed and cancelled."),
    ] = None,
    webhook_signed_by: Annotated[
        str | None, typer.Option(help="ID of a standing webhook whose secret signs, in place of a new one.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            callback=check_key,
            help="Key of this job: submitting again with the same key creates no second job. Default: random.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0, callback=finite, help="Wait as with --wait, but at most this many seconds; the job continues."
        ),
    ] = None,
    junit: Junit = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Submit a job to the service."""
    request = request_body(
        model=model,
        calibration=calibration,
        ratio=ratio,
        drop=drop,
        pattern_safe=pattern_safe,
        method=method,
        ridge=ridge,
        replays=replays,
        groups=groups,
        loss=loss,
        structure=structure,
        as_published=as_published,
        selection=selection,
        ridge_later=ridge_later,
        time_budget=time_budget,
        self_generated=self_generated,
        general=general,
        judged_on=judged_on,
        tasks=tasks,
        gate=gate,
        output=output,
        label=label,
        device=device,
        shards=shards,
        credential=credential,
        priority=priority,
        max_queue_seconds=max_queue_seconds,
        max_runtime_seconds=max_runtime_seconds,
    )
    if junit is not None and not wait and timeout is None:
        raise typer.BadParameter("--junit needs --wait, or --timeout", param_hint="--junit")
    hook = _given(url=webhook, events=webhook_event, signed_by=webhook_signed_by)
    if hook and webhook is None:
        raise typer.BadParameter(
            "--webhook-event and --webhook-signed-by are for --webhook URL", param_hint="--webhook"
        )
    if hook:
        request["webhook"] = hook
    with connect(url, api_key=api_key, as_json=as_json) as client:
        job = client.submit(request, idempotency_key=idempotency_key or uuid4().hex)
        if job.notice is not None:
            print_note(f"{job.notice} (--idempotency-key)")
        if job.webhook is not None and not as_json:
            print_secret(job.webhook)
        if wait or timeout is not None:
            job = _watch(client, job, timeout=timeout, as_json=as_json)
        print_job(job, as_json=as_json)
    if job.is_terminal:
        if wait or timeout is not None:
            write_for_pipeline(Ended.of_job(job), junit=junit)
        raise typer.Exit(int(exit_code_of_job(job.status, code=job.error.code if job.error else None)))


def request_body(
    *,
    model: str,
    calibration: list[str],
    ratio: float | None,
    drop: str | None,
    pattern_safe: bool,
    method: str | None,
    ridge: float | None,
    replays: int | None,
    groups: int | None,
    loss: str | None,
    structure: str | None,
    as_published: bool,
    selection: str | None,
    ridge_later: float | None,
    time_budget: float | None,
    self_generated: float | None,
    general: float | None,
    judged_on: str | None,
    tasks: str | None,
    gate: list[str] | None,
    output: str | None,
    label: list[str] | None,
    device: str | None,
    shards: int | None,
    credential: str | None,
    priority: int | None,
    max_queue_seconds: float | None,
    max_runtime_seconds: float | None,
) -> dict[str, object]:
    """The body of `POST /jobs` for these options. The command `plan` takes the options that this function takes."""
    text = calibration_field(
        parse_sources(calibration), self_generated=self_generated, general=general, judged_on=judged_on
    )
    method_options = options.method_field(
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
    compute = _given(device=device, shards=shards, pattern_safe=pattern_safe or None)
    return {"model": model, "calibration": text} | _given(
        ratio=ratio,
        drop=parse_drop(drop),
        method=method_options or None,
        evaluation={"tasks": parse_tasks(tasks)} if tasks else None,
        gate=parse_gate(gate),
        output=output,
        credential=credential,
        priority=priority,
        max_queue_seconds=max_queue_seconds,
        max_runtime_seconds=max_runtime_seconds,
        compute=compute or None,
        labels=parse_labels(label) if label else None,
    )


def _given(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _watch(client: Client, submitted: Job, *, timeout: float | None, as_json: bool) -> Job:
    """Show progress until the job has ended. After `timeout`, ends the command with `TIMED_OUT`."""
    job = submitted
    print_note(f"job {job.id}")
    try:
        with progress_display(make_console(stderr=True), clock=time.monotonic) as show:
            for job in client.watch(submitted.id, timeout=timeout):
                show(job.stage or job.status, job.progress.overall, job.progress.eta_seconds)
    except TimeoutError as error:
        print_job(job, as_json=as_json)
        raise Failure(f"{error}; it continues, see: replaceme status {job.id}", ExitCode.TIMED_OUT) from error
    except KeyboardInterrupt:
        print_note(f"the job continues; see: replaceme status {job.id}, or stop it: replaceme cancel {job.id}")
        raise
    return job
