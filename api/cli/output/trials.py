"""The trials of a search for the deepest cut, for people: blocks against perplexity and accuracy."""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table

from replaceme_core.request.gate import HEADER, NONE, Tried, by_depth, trial_rows
from replaceme_core.wording import counted

STAR = "* removes more than any other trial of as low a perplexity and as much accuracy"


def trials_table(trials: Sequence[Tried]) -> Table:
    """A row for each, the one that removes least first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=STAR, caption_justify="left")
    for name in HEADER:
        table.add_column(Group(*name.split(" ", 1)), justify="right", no_wrap=True)
    for row, one in zip(trial_rows(trials), by_depth(trials), strict=True):
        table.add_row(*row, style="green" if one.passed else "red")
    return table


def trial_lines(trials: Sequence[Tried]) -> list[str]:
    """One line for each."""
    return list(map(_line, trial_rows(trials)))


def _line(row: Sequence[str]) -> str:
    removed, perplexity, accuracy, verdict, _ = row
    blocks, _, star = removed.partition(" ")
    measured = "not measured" if perplexity == NONE else f"{perplexity} times the perplexity"
    kept = "" if accuracy == NONE else f", {accuracy} of the accuracy"
    return f"{verdict}: {counted(int(blocks), 'blocks')}, {measured}{kept} {star}".rstrip()
