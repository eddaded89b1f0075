"""The `replaceme` command: a thin client of the service, and three commands that start child processes."""

import os
from pathlib import Path
from typing import Annotated

import typer

from api.commands import local, service
from api.commands.console import Failure, read_settings
from api.commands.exits import ExitCode, exit_code_of
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
    from api import serve as service_parts  # brings SQLAlchemy and alembic, which no other command needs

    settings = read_settings() if data is None else read_settings(data=data)
    try:
        service_parts.serve(host=host, port=port, settings=settings, environ=os.environ, say=typer.echo)
    except ReplaceMeError as error:
        raise Failure(error.message, exit_code_of(error.code), code=error.code) from error
    except service_parts.ServiceStopped as error:
        raise Failure(str(error), ExitCode.INTERNAL_ERROR) from error


service.register(app)
local.register(app)


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
