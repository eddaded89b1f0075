"""Results for people: a report, models beside each other, tensors that differ. Labels and digits are those of the view.

Each table fits 80 columns.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from replaceme_core.report import view
from replaceme_core.report.figures import LOSS, NONE, RATIO, SHARE, WHOLE
from replaceme_core.report.reading import Place, Report
from replaceme_core.report.view import Cell, figures, plain, words
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
    """The best ones, the chosen first. Names of texts are too long for headings, so they stand below the table.

    The losses of runs that would go together are in the line of the first.
    """
    found = view.candidates(report)
    if found is None:
        return
    table, sets = found.only(most=MOST_CANDIDATES), found.only("group", most=MOST_CANDIDATES).rows
    groups = [plain(cell) for row in sets for cell in row]  # none where no runs would go together
    columns, rows, texts = list(table.columns), [list(row) for row in table.rows], []
    for at, one in enumerate(columns):
        name = one.key.removeprefix("on ")
        if name != one.key:
            texts.append(name)
            columns[at] = replace(one, heading=f"Text\u00a0{len(texts)}")
        if name != one.key or one.key == "held_out_loss":
            for row, group, above in zip(rows[1:], groups[1:], groups, strict=False):
                if group == above != NONE:
                    row[at] = ()
    console.print(rich_table(replace(table, columns=columns, rows=rows)))
    for number, name in enumerate(texts, start=1):
        console.print(f"text {number}: loss on {name}", soft_wrap=True)


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
        side: JustifyMethod = "left" if at == 0 or one.is_words else "right"
        longest = max(map(len, one.heading.split(" ")))
        found.add_column(one.heading, justify=side, overflow="fold", min_width=longest)
    for at, row in enumerate(table.rows):
        found.add_row(*map(plain, row), style="bold" if at in table.marked else "")
    return found


def models_table(names: Sequence[str], models: Sequence[Mapping[str, object]]) -> Table:
    """One column for each model; rows of a comparison only where there are several. Rows are those of `evaluate`."""
    report = Report({"models": list(models)})
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for label, cell in _rows_of_models(report):
        cells = [plain(cell(model)) for model in report.places("models")]
        if any(one != NONE for one in cells):
            table.add_row(label, *cells)
    return table


def _rows_of_models(report: Report) -> Iterator[tuple[str, Callable[[Place], Cell]]]:
    """The label of each row that there may be, and what makes the cell of a model in it."""
    for one in view.QUANTITIES:
        yield one.label, one.cells(report)
        if one.name == "perplexity":
            yield "  over tokens", figures(report, "tokens", as_=WHOLE)
            yield "  times the first", figures(report, "ratio", as_=RATIO, ends=("ratio_low", "ratio_high"))
        if one.speed:
            yield "  against the first", partial(_apart, report, one.speed)
    for _, _, *path in report.places("models", 0, "tasks"):
        name = report.text("models", 0, *path, "name")
        if report.number("models", 0, *path, "accuracy") is None:
            for metric in report.names("models", 0, *path, "metrics"):
                yield f"{name} {metric}", figures(report, *path, "metrics", metric, "value", as_=LOSS)
            continue
        samples = plain((report.figure("models", 0, *path, "samples", as_=WHOLE),))
        yield f"{name} accuracy (n = {samples})", view.accuracy(report, *path)
        yield "  kept", figures(report, *path, "kept", as_=SHARE)
        yield "  kept above chance", figures(report, *path, "kept_above_chance", as_=SHARE)
    yield "Dtype", words(report, "dtype")


def _apart(report: Report, name: str, model: Place) -> Cell:
    apart = report.at(*model, "told_apart", name)
    return (NONE,) if apart is None else ("significant" if apart is True else "not significant",)


def differences_table(differences: Sequence[Mapping[str, object]]) -> Table:
    """Tensors that are not the same in two models, with how many values differ, and by how much."""
    report = Report({"differences": list(differences)})
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    for name in ("differs in", "values", "at most by", "relative"):
        table.add_column(name, justify="right", no_wrap=True)
    for base in report.places("differences", most=None):
        differing, values = (report.figure(*base, name, as_=WHOLE) for name in ("differing", "values"))
        share_of: Cell = ("all",) if differing == NONE else (differing, " of ", values)
        sizes = ((report.figure(*base, name, as_="{:.3g}".format),) for name in ("largest", "relative"))
        table.add_row(report.text(*base, "name"), report.text(*base, "what"), plain(share_of), *map(plain, sizes))
    return table
