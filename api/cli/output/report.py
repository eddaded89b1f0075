"""Results for people: a report, models beside each other, tensors that differ. Labels and digits are those of the view.

Each table fits 80 columns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from replaceme_core.report import view
from replaceme_core.report.figures import LOSS, NONE, RATIO, WHOLE, share
from replaceme_core.report.reading import Report, Step
from replaceme_core.report.view import Cell, plain
from replaceme_core.request.removal import block_ranges
from replaceme_core.wording import printable

ANSWER_CHARACTERS = 300
MOST_CANDIDATES = 8


def print_report(console: Console, report: Report) -> None:
    """The content of `replaceme.json`: what was removed and why, both models, their answers, the gate."""
    removed, kept = len(report.blocks("removed_blocks")), len(report.blocks("kept_blocks"))
    if removed + kept:
        ranges = block_ranges(report.blocks("removed_blocks"))
        console.print(f"removed {removed} of {removed + kept} blocks: {ranges}")
    print_candidates(console, report)
    print_tables(console, *(table(report) for table in view.COMPARED))
    print_answers(console, report)
    print_gate(console, report)


def print_tables(console: Console, *tables: view.Table | None) -> None:
    """The brief columns of each table; what is not there is left out."""
    for table in tables:
        if table is not None:
            console.print(rich_table(table.only()))


def print_candidates(console: Console, report: Report) -> None:
    """The best ones, the chosen first. Names of texts are too long for headings, so they stand below the table."""
    found = view.candidates(report)
    if found is None:
        return
    table, texts = found.only(most=MOST_CANDIDATES), []
    columns = list(table.columns)
    for at, one in enumerate(columns):
        name = one.key.removeprefix("on ")
        if name != one.key:
            texts.append(name)
            columns[at] = replace(one, heading=f"Loss on text\u00a0{len(texts)}")
    console.print(rich_table(replace(table, columns=columns)))
    for number, name in enumerate(texts, start=1):
        console.print(f"text {number}: {name}", soft_wrap=True)


def print_gate(console: Console, report: Report) -> None:
    """The criteria, and the trials of a search for the deepest cut."""
    print_tables(console, view.gate(report))
    trials = view.trials(report)
    if trials is not None:
        console.print(rich_table(trials, caption=trials.note))


def print_answers(console: Console, report: Report) -> None:
    """The prompts with the answers of both models."""
    found = view.answers(report, longest=ANSWER_CHARACTERS)
    for prompt, *answers in found.rows if found else ():
        console.print()
        console.print(Text(plain(prompt), style="bold"))
        for name, answer in zip(("original", "result"), answers, strict=True):
            console.print(f"  {name:<10}{plain(answer)}")


def print_asked(console: Console, answers: Sequence[tuple[str, str, str]]) -> None:
    """Prompt, model and answer, those of one prompt together."""
    width, last = max(len(model) for _, model, _ in answers), None
    for prompt, model, text in answers:
        if prompt != last:
            console.print()
            console.print(Text(printable(prompt), style="bold"))
        last = prompt
        for number, line in enumerate(text.splitlines() or [""]):
            console.print(Text(f"  {'' if number else model:<{width}}  {printable(line)}"), soft_wrap=True)


def print_warnings(console: Console, report: Report) -> None:
    """One line each."""
    for one in view.warnings(report):
        console.print(Text(f"warning: {plain(one)}", style="yellow"), soft_wrap=True)


def rich_table(table: view.Table, *, caption: str | None = None) -> Table:
    """A table of the view; marked rows are bold."""
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1), caption=caption, caption_justify="left")
    for at, one in enumerate(table.columns):
        found.add_column(one.heading, justify="left" if at == 0 or one.is_words else "right", overflow="fold")
    for at, row in enumerate(table.rows):
        found.add_row(*map(plain, row), style="bold" if at in table.marked else "")
    return found


def models_table(names: Sequence[str], models: Sequence[Mapping[str, object]]) -> Table:
    """One column for each model; rows of a comparison only where there are several. Rows are those of `evaluate`."""
    report, places = Report({"models": list(models)}), range(len(models))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")

    def add(label: str, cells: Sequence[Cell]) -> None:
        if any(plain(cell) != NONE for cell in cells):
            table.add_row(label, *map(plain, cells))

    for one in view.QUANTITIES:
        add(one.label, [one.cell(report, "models", at) for at in places])
        if one.name == "perplexity":
            add("  over tokens", [(report.figure("models", at, "tokens", as_=WHOLE),) for at in places])
            add("  times the first", [_ratio(report, at) for at in places])
        if one.speed:
            add("  against the first", [_apart(report, at, one.speed) for at in places])
    for task in report.rows("models", 0, "tasks"):
        _add_task(report, task, places, add=add)
    add("Dtype", [(report.words("models", at, "dtype"),) for at in places])
    return table


def _add_task(report: Report, task: int, places: range, *, add: Callable[[str, Sequence[Cell]], None]) -> None:
    """The accuracy with its interval, and what is kept of the first model's; else its metrics."""
    first: tuple[Step, ...] = ("models", 0, "tasks", task)
    name = report.text(*first, "name")
    if report.number(*first, "accuracy") is None:
        for metric in report.names(*first, "metrics"):
            values = [("models", at, "tasks", task, "metrics", metric, "value") for at in places]
            add(f"{name} {metric}", [(report.figure(*value, as_=LOSS),) for value in values])
        return
    samples = plain((report.figure(*first, "samples", as_=WHOLE),))
    add(f"{name} accuracy (n = {samples})", [view.accuracy(report, "models", at, "tasks", task) for at in places])
    for key, label in (("kept", "  kept"), ("kept_above_chance", "  kept above chance")):
        add(label, [(report.figure("models", at, "tasks", task, key, as_=share),) for at in places])


def _ratio(report: Report, at: int) -> Cell:
    """With its interval; none for the first model, and for other tokens than the first model's."""
    base = ("models", at)
    between = view.interval(report, base, "ratio_low", "ratio_high", form=RATIO)
    return (report.figure(*base, "ratio", as_=RATIO), *between)


def _apart(report: Report, at: int, name: str) -> Cell:
    apart = report.at("models", at, "told_apart", name)
    return (NONE,) if apart is None else ("significant" if apart is True else "not significant",)


def differences_table(differences: Sequence[Mapping[str, object]]) -> Table:
    """Tensors that are not the same in two models, with how many values differ, and by how much."""
    report = Report({"differences": list(differences)})
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    for name in ("differs in", "values", "at most by", "relative"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows("differences", most=None):
        base = ("differences", row)
        differing, values = (report.figure(*base, name, as_=WHOLE) for name in ("differing", "values"))
        share_of: Cell = ("all",) if differing == NONE else (differing, " of ", values)
        sizes = ((report.figure(*base, name, as_="{:.3g}".format),) for name in ("largest", "relative"))
        table.add_row(report.text(*base, "name"), report.text(*base, "what"), plain(share_of), *map(plain, sizes))
    return table
