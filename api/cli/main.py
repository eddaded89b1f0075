"""The `replaceme` command: its subcommands in the order of its help.

The module of a subcommand is imported when that subcommand is called, so that help and version take no time.
"""

import io
import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

_RUN, _USE, _HERE = "Run the service", "Use the service", "Work on this machine, without a service"

COMMANDS = {
    "serve": (_RUN, "serve.serve", "Run the API and a worker together until interrupted."),
    "worker": (_RUN, "serve.worker", "Run workers only, one per GPU or one on the CPU, until interrupted."),
    "openapi": (_RUN, "serve.openapi", "Print the OpenAPI 3.1 document of this version as JSON."),
    "doctor": (_RUN, "serve.doctor", "Look at this machine, and at what the settings name: does it answer?"),
    "keys": (_RUN, "keys.app", "Create, list, revoke and rotate API keys."),
    "plan": (_USE, "jobs.plan", "Show what a job would take: blocks, memory, disk, time. Nothing is queued."),
    "submit": (_USE, "jobs.submit", "Submit a job to the service: from a file, from options, or from both."),
    "status": (_USE, "jobs.status", "Show a job."),
    "list": (_USE, "jobs.list_jobs", "List jobs, newest first."),
    "cancel": (_USE, "jobs.cancel", "Cancel a job, or all that match the options. A running job stops within seconds."),
    "retry": (
        _USE,
        "jobs.retry",
        "Submit a new job like one that has ended. Its result is new, or goes where it was named.",
    ),
    "delete": (
        _USE,
        "jobs.delete",
        "Delete jobs that have ended, with events, metrics, log and report. Their results stay on the Hub.",
    ),
    "report": (_USE, "report.report", "Show what was removed, why, and what the result is worth."),
    "metrics": (_USE, "jobs.metrics", "Show what the present attempt of a job has measured."),
    "events": (_USE, "jobs.events", "Show the events of a job."),
    "logs": (_USE, "jobs.logs", "Show the last lines that the runners of a job wrote."),
    "workers": (
        _USE,
        "jobs.workers",
        "List the workers: those that are alive, and those that were lost within the last hour.",
    ),
    "families": (_USE, "jobs.families", "List the model families, and why some are not supported."),
    "webhooks": (_USE, "webhooks.app", "Send the events of jobs to a URL."),
    "credentials": (_USE, "keys.credentials_app", "Keep tokens for the Hub in a service."),
    "compress": (_HERE, "local.compress", "Compress a model."),
    "evaluate": (
        _HERE,
        "local.evaluate",
        "Measure perplexity, size and speed of one model, or of several beside each other.",
    ),
    "ask": (_HERE, "local.ask", "Ask a model, or several beside each other, and print what they answer."),
    "heal": (_HERE, "local.heal", "Train a result toward its original; nothing is removed again."),
    "reproduce": (
        _HERE,
        "local.reproduce",
        "Make a result again and compare the tensors: exit code 0 for the same bytes, 9 if any differ.",
    ),
}
"""Of each subcommand: its panel in the help, its function or application below `api.cli`, its help."""


class _Group(TyperGroup):
    """Imports the subcommand that is called. An error that is expected ends it with a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        as_json = "--json" in ctx.args
        try:
            if any("\udc80" <= one <= "\udcff" for one in "".join(sys.argv)):  # bytes of another encoding
                from replaceme_core.errors import InvalidInput

                raise InvalidInput("an argument is no text in UTF-8; rename the file that it names")
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except Exception as error:
            from api.cli.exit_codes import Failure

            failure = Failure.of(error)
            if failure is None or (isinstance(error, typer.TyperException) and not as_json):
                raise  # typer shows what is wrong with the arguments below the usage of the command
            failure.show(as_json=as_json)
            raise typer.Exit(int(failure.exit_code)) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name else listed, rest


def _load(name: str) -> Any:
    _, place, help_text = COMMANDS[name]
    module, _, attribute = f"api.cli.{place}".rpartition(".")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False)
        found.command(name)(function)
    command = get_command(found)
    command.help = help_text
    return command


app = typer.Typer(
    cls=_Group,
    help="Compress language models: remove blocks, and fold a linear map in their place.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"replaceme {version('replaceme')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself."""


for _name, (_panel, _, _help) in COMMANDS.items():
    app.command(_name, help=_help, rich_help_panel=_panel)(lambda: None)


def main() -> None:
    """Entry point of the command."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as by `2>&-`: the next file would get its number, and errors in it
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, errors="backslashreplace"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error is: a terminal may know fewer characters
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="replaceme")
