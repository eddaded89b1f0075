"""The answers of both models side by side, and the warnings of a result, for people."""

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

SHOWN_CHARACTERS = 300


def print_answers(console: Console, report: Mapping[str, object]) -> None:
    """The prompts with the answers of the source model and of the pruned one; `report` is that of `replaceme.json`."""
    answers = report.get("answers")
    for row in answers if isinstance(answers, list) else []:
        console.print()
        console.print(Text(_shown(str(row["prompt"])), style="bold"))
        for name in ("before", "after"):
            console.print(f"  {name:<8}{_shown(str(row[name]))}")


def print_warnings(console: Console, warnings: object) -> None:
    """One line for each of `warnings`, which are those of `replaceme.json`; what is none is left out."""
    for one in warnings if isinstance(warnings, list) else []:
        console.print(Text(f"warning: {one['message']}", style="yellow"), soft_wrap=True)


def _shown(text: str) -> str:
    line = " ".join(text.split())
    if len(line) > SHOWN_CHARACTERS:
        line = line[: SHOWN_CHARACTERS - 1] + "…"
    return line or "(nothing)"
