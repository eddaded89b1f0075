"""`events`, `logs`, `metrics`, `report`: what a job has done and found."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from api.cli.exit_codes import ExitCode
from api.cli.failure import Failure
from api.cli.output.console import JsonFlag, make_console, print_json, print_note
from api.cli.output.job_tables import event_line, metrics_table
from api.cli.output.report import print_report
from api.cli.output.times import describe_time
from api.cli.service import ApiKeyOption, JobId, Url, connect
from api.client.client import DEFAULT_URL
from api.client.models import LogLine
from api.client.responses.base import Response

_REPORT = "replaceme.json"
One = TypeVar("One", bound=Response)


def events(
    job_id: JobId,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Print new events until the job has ended.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the events of a job."""
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
    """Show the last lines that the runners of a job wrote."""
    with connect(url, api_key=api_key, as_json=as_json) as client:
        found = client.follow_log(job_id) if follow else client.log(job_id)
        _print_each(found, _log_line, follow=follow, as_json=as_json)


def _print_each(found: Iterable[One], line_of: Callable[[One], str], *, follow: bool, as_json: bool) -> None:
    """A line for each as it comes; with `as_json` one object at the end, and the lines apart if there may be more."""
    printed = []
    for one in found:
        printed.append(one.model_dump(mode="json"))
        if not as_json:
            typer.echo(line_of(one))
        elif follow:
            print_note(line_of(one))
    if as_json:
        print_json({"items": printed, "next_cursor": None})


def _log_line(line: LogLine) -> str:
    return f"{describe_time(line.at)}  {line.text}"


def metrics(job_id: JobId, *, url: Url = DEFAULT_URL, api_key: ApiKeyOption = None, as_json: JsonFlag = False) -> None:
    """Show what the present attempt of a job has measured."""
    with connect(url, api_key=api_key, as_json=as_json) as client:
        found = client.metrics(job_id)
    if as_json:
        print_json({"items": [one.model_dump() | {"at": one.at.isoformat()} for one in found], "next_cursor": None})
    elif found:
        make_console(stderr=False).print(metrics_table(found))
    else:
        print_note("no metrics")


def report(
    job: Annotated[str, typer.Argument(metavar="ID|DIR", help="ID of a job, or the directory of a result.")],
    *,
    url: Url = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what was removed, why, and what the result is worth."""
    if (Path(job) / _REPORT).is_file():
        found = _read_report(Path(job) / _REPORT, as_json=as_json)
    elif Path(job).is_dir():
        raise Failure(f"{job} has no {_REPORT}, so it is no result", ExitCode.BAD_INPUT, as_json=as_json)
    else:
        with connect(url, api_key=api_key, as_json=as_json) as client:
            found = client.report(job)
    if as_json:
        print_json(found)
    else:
        print_report(make_console(stderr=False), found)


def _read_report(path: Path, *, as_json: bool) -> dict[str, object]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"{path} cannot be read: {error}", ExitCode.BAD_INPUT, as_json=as_json) from error
    if not isinstance(found, dict):
        raise Failure(f"{path} is not a report", ExitCode.BAD_INPUT, as_json=as_json)
    return found
