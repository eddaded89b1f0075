"""`serve`, `worker`, `doctor`, `openapi`: commands of those who run the service."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from api.cli.exit_codes import ExitCode
from api.cli.output.console import JsonFlag
from replaceme_core.local.run import check_installed
from replaceme_core.settings import Settings, read_settings

DataDirectory = Annotated[
    Path | None, typer.Option("--data", help="Data directory. Default: REPLACEME_DATA, or ./data.", show_default=False)
]


def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8000,
    data: DataDirectory = None,
) -> None:
    settings = _prepare("serve", "api", "worker", data=data)
    from api.cli.launch import serve as run_service

    run_service(host=host, port=port, settings=settings, environ=os.environ)


def worker(
    *,
    gpus: Annotated[
        str | None,
        typer.Option(help="Run one worker per GPU: all, or GPU numbers such as 0,1. Default: one worker on the CPU."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Run at most one job, then end with 0, also where there was none.")
    ] = False,
    data: DataDirectory = None,
) -> None:
    settings = _prepare("worker", "worker", data=data)
    from api.cli.launch import work, work_once

    if once:
        work_once(gpus=gpus, settings=settings, environ=os.environ)
    work(gpus=gpus, settings=settings, environ=os.environ)


def doctor(
    *,
    data: DataDirectory = None,
    as_json: JsonFlag = False,
) -> None:
    settings = _prepare("doctor", data=data)
    from api.cli.doctor import look

    if not look(settings, as_json=as_json):
        raise typer.Exit(int(ExitCode.BAD_INPUT))


def openapi() -> None:
    _prepare("openapi", "api")
    from api.main import create_app

    typer.echo(json.dumps(create_app().openapi(), indent=2, ensure_ascii=False))


def _prepare(command: str, *extras: str, data: Path | None = None) -> Settings:
    """The settings, once the libraries of these extras are there; those of a runner only where it is ours."""
    settings = read_settings() if data is None else read_settings(data=data)
    check_installed(command, *(one for one in extras if one != "worker" or settings.runner_command is None))
    return settings
