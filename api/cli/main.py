"""The `replaceme` command: its subcommands, in the order of its help."""

from collections.abc import Callable, Mapping

import typer

from api.cli import families, jobs, plan, serve, submit
from api.cli.local import compress, evaluate

app = typer.Typer(
    name="replaceme",
    help="Compress language models: remove blocks, and fold a linear map in their place.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PANELS: Mapping[str, Mapping[str, Callable[..., None]]] = {
    "Run the service": {"serve": serve.serve, "worker": serve.worker},
    "Use the service": {
        "plan": plan.plan,
        "submit": submit.submit,
        "status": jobs.status,
        "list": jobs.list_jobs,
        "cancel": jobs.cancel,
        "events": jobs.events,
        "families": families.families,
    },
    "Work on this machine, without a service": {"compress": compress.compress, "evaluate": evaluate.evaluate},
}
for panel, commands in _PANELS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)


def main() -> None:
    """Entry point of the command."""
    app(prog_name="replaceme")
