"""The `replaceme` command: a thin client of the service, and three commands that start child processes."""

import os
from pathlib import Path
from typing import Annotated

import typer

from api.cli import local, service
from api.cli.console import Failure, read_settings, say
from api.cli.exits import ExitCode, exit_code_of
from replaceme_core.errors import ReplaceMeError

app = typer.Typer(
    name="replaceme",
    help="Compress language models by removing blocks and folding a linear map in their place.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("serve")
def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    data: Annotated[Path | None, typer.Option(help="Data directory; REPLACEME_DATA or ./data by default.")] = None,
) -> None:
    """Run the API and a worker together, until Ctrl-C."""
    # imported here: they bring SQLAlchemy and alembic, which the other commands do not need
    from api.launch import child_processes, serve

    settings = read_settings() if data is None else read_settings(data=data)
    try:
        serve.serve(host=host, port=port, settings=settings, environ=os.environ, say=typer.echo)
    except ReplaceMeError as error:
        raise Failure(error.message, exit_code_of(error.code), code=error.code) from error
    except child_processes.ServiceStopped as error:
        raise Failure(str(error), ExitCode.INTERNAL_ERROR) from error


@app.command("worker")
def worker(
    *,
    gpus: Annotated[
        str | None, typer.Option(help="all, or numbers such as 0,1: a worker for each. One for the CPU by default.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data directory; REPLACEME_DATA or ./data by default.")] = None,
) -> None:
    """Run workers alone, one for each GPU or one for the CPU, until Ctrl-C."""
    from api.launch import child_processes, workers

    settings = read_settings() if data is None else read_settings(data=data)
    try:
        workers.work(gpus=gpus, settings=settings, environ=os.environ, say=typer.echo, warn=say)
    except ReplaceMeError as error:
        raise Failure(error.message, exit_code_of(error.code), code=error.code) from error
    except child_processes.ServiceStopped as error:
        raise Failure(str(error), ExitCode.INTERNAL_ERROR) from error


service.register(app)
local.register(app)


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
