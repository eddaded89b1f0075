"""`events`, `logs`, `metrics`: what a job has done and found."""

from collections.abc import Callable, Iterable
from typing import Annotated, TypeVar

import typer

from api.cli.output.console import JsonFlag, describe_time, make_console, print_json, print_line, print_note
from api.cli.output.jobs import event_line, metrics_table
from api.cli.service import ApiKeyOption, JobId, Url, connect
from api.client.client import DEFAULT_URL
from replaceme_core.shapes import LogLine, Shape

One = TypeVar("One", bound=Shape)


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
