"""Tasks to measure a model with, on the command line."""

from pathlib import Path
from typing import Annotated

import typer

Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Tasks of the lm-evaluation-harness, or replaceme_paper for those of the paper. Needs the extra tasks.",
    ),
]
TasksDirectory = Annotated[
    Path | None,
    typer.Option(
        "--tasks-dir",
        exists=True,
        file_okay=False,
        help="Directory with the data of the tasks, as org/name, and with YAML files of tasks of your own.",
    ),
]
TaskLimit = Annotated[
    int | None, typer.Option(min=1, help="Only so many questions of each task, for a quick look. Default: all.")
]
FewShot = Annotated[
    int | None, typer.Option(min=0, max=100, help="Examples in the prompt of each question. Default: as the task says.")
]


def parse_tasks(text: str | None) -> list[str]:
    """
    >>> parse_tasks("piqa, sciq")
    ['piqa', 'sciq']
    """
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if len(set(names)) < len(names) or "" in names:
        raise typer.BadParameter(f"expected different names such as piqa,sciq, got {text!r}", param_hint="--tasks")
    return names
