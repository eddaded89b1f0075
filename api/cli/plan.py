"""`plan`: what a job would take, before it is submitted. Takes the options of `submit` that describe the job."""

import inspect
from collections.abc import Callable
from typing import Any

import typer

from api.cli.exit_codes import ExitCode
from api.cli.output.console import JsonFlag, make_console, print_json
from api.cli.output.plan import print_plan
from api.cli.service import ApiKeyOption, Url, connect
from api.cli.submit import request_body, submit
from api.client.client import DEFAULT_URL


def _with_options_of_submit(command: Callable[..., None]) -> Callable[..., None]:
    """The command with those options of `submit` that are in the body of a request, and with its own."""
    of_job = inspect.signature(request_body).parameters
    own = [each for each in inspect.signature(command).parameters.values() if each.kind is each.KEYWORD_ONLY]
    shared = [each for each in inspect.signature(submit).parameters.values() if each.name in of_job]
    command.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in (*shared, *own)}
    return command


@_with_options_of_submit
def plan(*, url: Url = DEFAULT_URL, api_key: ApiKeyOption = None, as_json: JsonFlag = False, **options: Any) -> None:
    """Show what a job would take: blocks, memory, disk, time. Nothing is queued."""
    with connect(url, api_key=api_key, as_json=as_json) as client:
        found = client.plan(request_body(**options))
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_plan(make_console(stderr=False), found)
    if found.refusals:
        raise typer.Exit(int(ExitCode.BAD_INPUT))
