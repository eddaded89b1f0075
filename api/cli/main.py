"""The `replaceme` command: its subcommands, in the order of its help."""

from collections.abc import Callable, Mapping

import typer

from api.cli import families, history, jobs, openapi, report, serve, submit, webhooks
from api.cli.access import credentials, keys
from api.cli.local import compress, evaluate, reproduce

app = typer.Typer(
    name="replaceme",
    help="Compress language models: remove blocks, and fold a linear map in their place.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PANELS: Mapping[str, Mapping[str, Callable[..., None]]] = {
    "Run the service": {"serve": serve.serve, "worker": serve.worker, "openapi": openapi.openapi},
    "Use the service": {
        "plan": submit.plan,
        "submit": submit.submit,
        "status": jobs.status,
        "list": jobs.list_jobs,
        "cancel": jobs.cancel,
        "retry": jobs.retry,
        "delete": jobs.delete,
        "report": report.report,
        "metrics": history.metrics,
        "events": history.events,
        "logs": history.logs,
        "workers": jobs.workers,
        "families": families.families,
    },
    "Work on this machine, without a service": {
        "compress": compress.compress,
        "evaluate": evaluate.evaluate,
        "reproduce": reproduce.reproduce,
    },
}
for panel, commands in _PANELS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel="Use the service")
app.add_typer(keys.app, name="keys", rich_help_panel="Run the service")
app.add_typer(credentials.app, name="credentials", rich_help_panel="Use the service")


def main() -> None:
    """Entry point of the command."""
    app(prog_name="replaceme")
