"""`submit`: send a job to the service, and wait for it if asked to. `plan`: what such a job would take."""

import re
from typing import Annotated, Any
from uuid import uuid4

import typer

from api.cli.exit_codes import ExitCode
from api.cli.job_request import (
    NOT_OF_A_PLAN,
    JobFile,
    check_request,
    read_job_file,
    request_body,
    with_job_options,
)
from api.cli.output.ci import Junit
from api.cli.output.console import JsonFlag, make_console, print_json, print_note
from api.cli.output.jobs import print_plan
from api.cli.service import ApiKeyOption, Url, connect
from api.cli.watching import CancelOnInterrupt, Timeout, Wait, finish, interrupts
from api.cli.webhooks import print_secret
from api.client.client import DEFAULT_URL
from api.client.models import Plan


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
