"""What a result says, in one place for all who show it: page, model card, terminal and dashboard.

Tables of labelled values are made from a `Report`. The printers choose among their columns, and decide no words and no
digits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from replaceme_core.report.figures import (
    LOSS,
    PERPLEXITY,
    RATIO,
    WHOLE,
    Form,
    duration,
    exact,
    share,
    size,
)
from replaceme_core.report.reading import Piece, Report, Step
from replaceme_core.wording import counted, markdown

MOST_CANDIDATES, SHOWN_CANDIDATES, MOST_SOURCES, MOST_ANSWERS = 4000, 24, 6, 20
Cell = tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class Column:
    """`is_brief`: also where there is little room, as in a terminal. `is_words`: not aligned as numbers are."""

    key: str
    heading: str
    is_brief: bool = True
    is_words: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """`rows` have a cell for each column; the first is the heading of its row. `marked` rows stand out."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    marked: frozenset[int] = frozenset()
    note: str = ""

    def only(self, *keys: str, most: int | None = None) -> "Table":
        """These columns of the first `most` rows; without `keys`, the columns that are brief."""
        kept = [at for at, one in enumerate(self.columns) if (one.key in keys if keys else one.is_brief)]
        rows = [[row[at] for at in kept] for row in self.rows[:most]]
        return replace(self, columns=[self.columns[at] for at in kept], rows=rows)


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What is measured of both models. `path` is where it is below `before` and `after` of a report.

    Its metrics are `before.NAME` and `after.NAME`, in `unit`. `speed` is its name in `speed_changes`.
    """

    name: str
    label: str
    unit: str
    form: Form
    path: tuple[str, ...]
    speed: str = ""

    def cell(self, report: Report, *model: Step) -> Cell:
        """The value of the model at this place; a median of several runs with the slowest and the fastest one."""
        cell = (report.figure(*model, *self.path, as_=self.form),)
        if self.path[-1] != "median":
            return cell
        return (*cell, *interval(report, (*model, *self.path[:-1]), "low", "high", form=self.form))

    def change(self, report: Report) -> Cell:
        """By which part the result differs from the original."""
        if self.speed and report.at("speed_changes", self.speed, "told_apart") is False:
            return ("not significant",)
        return (report.change(("before", *self.path), ("after", *self.path)),)


QUANTITIES = (
    Quantity(name="blocks", label="Blocks", unit="blocks", form=WHOLE, path=("blocks",)),
    Quantity(name="parameters", label="Parameters", unit="parameters", form=WHOLE, path=("parameters",)),
    Quantity(name="bytes", label="Weights on disk", unit="bytes", form=size, path=("bytes",)),
    Quantity(name="perplexity", label="Perplexity", unit="ratio", form=PERPLEXITY, path=("perplexity",)),
    Quantity(
        name="word_perplexity", label="Perplexity per word", unit="ratio", form=PERPLEXITY, path=("word_perplexity",)
    ),
    Quantity(name="byte_perplexity", label="Perplexity per byte", unit="ratio", form=RATIO, path=("byte_perplexity",)),
    Quantity(
        name="tokens_per_second",
        label="Tokens per second with all logits",
        unit="tokens/s",
        form=WHOLE,
        path=("tokens_per_second",),
    ),
    Quantity(
        name="prefill_tokens_per_second",
        label="Tokens read per second",
        unit="tokens/s",
        form=WHOLE,
        path=("speed", "prefill", "median"),
        speed="prefill",
    ),
    Quantity(
        name="decode_tokens_per_second",
        label="Tokens written per second",
        unit="tokens/s",
        form=WHOLE,
        path=("speed", "decode", "median"),
        speed="decode",
    ),
    Quantity(
        name="cache_bytes_per_token",
        label="KV cache per token",
        unit="bytes",
        form=size,
        path=("speed", "cache_bytes_per_token"),
    ),
    Quantity(
        name="peak_bytes",
        label="Peak memory of weights and tensors",
        unit="bytes",
        form=size,
        path=("speed", "peak_bytes"),
    ),
    Quantity(
        name="looping_answers",
        label="Answers that end in a repetition",
        unit="answers",
        form=WHOLE,
        path=("looping_answers",),
    ),
    Quantity(
        name="distinct_4grams",
        label="Different runs of four tokens",
        unit="ratio",
        form=share,
        path=("distinct_4grams",),
    ),
)
"""In the order in which they are shown. A new one is a row here, and a value of `Measurement` or of `Speed`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity of both models."""

    label: str
    before: Cell
    after: Cell
    change: Cell


def compared(report: Report) -> list[Row]:
    """Each quantity that was measured of one of the models.

    The speed of the forward passes that gave the perplexity is shown where reading and writing were not timed.
    """
    sides: Sequence[Step] = ("before", "after")
    is_timed = report.number("after", "speed", "prefill", "median") is not None
    return [
        Row(
            label=one.label,
            before=one.cell(report, "before"),
            after=one.cell(report, "after"),
            change=one.change(report),
        )
        for one in QUANTITIES
        if any(report.number(side, *one.path) is not None for side in sides)
        and not (is_timed and one.name == "tokens_per_second")
    ]


def both_models(report: Report) -> Table | None:
    """Both models side by side."""
    rows: list[Sequence[Cell]] = [((one.label,), one.before, one.after, one.change) for one in compared(report)]
    if not rows:
        return None
    return Table(
        caption="Both models",
        columns=(
            Column(key="name", heading="Measured"),
            Column(key="before", heading="Original"),
            Column(key="after", heading="Result"),
            Column(key="change", heading="Change"),
        ),
        rows=rows,
        note="Perplexity is on text that calibration did not see; less is better. Reading and writing are of one "
        "sequence: the median of several runs after a warm-up, both models in turn; in brackets the slowest and the "
        "fastest run. Not significant: the runs differ more than the models. Tied parameters count once.",
    )


def texts(report: Report) -> Table | None:
    """Perplexity on each text."""
    rows: list[list[Cell]] = [
        [
            (report.words(*base, "name"),),
            (report.figure(*base, "before", as_=PERPLEXITY),),
            (report.figure(*base, "after", as_=PERPLEXITY),),
            (report.figure(*base, "ratio", as_=RATIO), *interval(report, base, "ratio_low", "ratio_high", form=RATIO)),
            (report.figure(*base, "divergence", as_=RATIO),),
            (report.figure(*base, "agreement", as_=share),),
            (report.figure(*base, "tokens", as_=WHOLE),),
        ]
        for base in (("texts", row) for row in report.rows("texts"))
    ]
    if not rows:
        return None
    return Table(
        caption="Perplexity on each text",
        columns=(
            Column(key="name", heading="Text"),
            Column(key="before", heading="Original"),
            Column(key="after", heading="Result"),
            Column(key="ratio", heading="Ratio (95 % interval)"),
            Column(key="divergence", heading="Divergence (nats)", is_brief=False),
            Column(key="agreement", heading="Same choice"),
            Column(key="tokens", heading="Tokens", is_brief=False),
        ),
        rows=rows,
        note="Perplexity: how unexpected the next token is on average; less is better. Divergence: how far the "
        "distributions of the next token are apart (Kullback-Leibler). Same choice: how often both models find the "
        "same token most likely.",
    )


def tasks(report: Report) -> Table | None:
    """Accuracy in each task that has one."""
    rows: list[list[Cell]] = [
        [
            (report.words(*base, "name"),),
            *(accuracy(report, *base, side) for side in ("before", "after")),
            *((report.figure(*base, name, as_=share),) for name in ("kept", "kept_above_chance", "chance")),
            *((report.figure(*base, name, as_=WHOLE),) for name in ("few_shot", "samples")),
        ]
        for base in (("tasks", row) for row in report.rows("tasks"))
        if report.number(*base, "before", "accuracy") is not None
        and report.number(*base, "after", "accuracy") is not None
    ]
    if not rows:
        return None
    return Table(
        caption="Accuracy in each task",
        columns=(
            Column(key="name", heading="Task"),
            Column(key="before", heading="Original (95 % interval)"),
            Column(key="after", heading="Result (95 % interval)"),
            Column(key="kept", heading="Kept"),
            Column(key="kept_above_chance", heading="Kept above chance"),
            Column(key="chance", heading="Chance", is_brief=False),
            Column(key="few_shot", heading="Examples", is_brief=False),
            Column(key="samples", heading="Questions"),
        ),
        rows=rows,
        note="Scored by lm-evaluation-harness; intervals are Wilson's. Chance: what guessing gets right.",
    )


def accuracy(report: Report, *result: Step) -> Cell:
    """Of one model in one task, with its interval."""
    return (report.figure(*result, "accuracy", as_=share), *interval(report, result, "low", "high", form=share))


def gate(report: Report) -> Table | None:
    """What the result had to be worth; missed criteria are marked."""
    base = ("gate", "criteria")
    rows = report.rows(*base)
    if not rows:
        return None
    return Table(
        caption="Criteria of the gate",
        columns=(
            Column(key="name", heading="Criterion"),
            Column(key="value", heading="Measured"),
            Column(key="limit", heading="Limit", is_words=True),
            Column(key="verdict", heading="Verdict", is_words=True),
        ),
        rows=[
            [
                (report.words(*base, row, "name"),),
                (report.figure(*base, row, "value", as_=exact),),
                _limits(report, *base, row),
                (verdict(report.is_true(*base, row, "passed")),),
            ]
            for row in rows
        ],
        marked=frozenset(row for row in rows if not report.is_true(*base, row, "passed")),
        note="Divergence is in nats; all others are ratios to the original model.",
    )


def verdict(passed: bool) -> str:
    """In one word."""
    return "passed" if passed else "✗ missed"


def _limits(report: Report, *criterion: Step) -> Cell:
    given = [
        (words, report.figure(*criterion, name, as_=exact))
        for words, name in (("at least ", "min"), ("at most ", "max"))
        if report.number(*criterion, name) is not None
    ]
    pieces = [piece for pair in given for piece in (" and ", *pair)]
    return tuple(pieces[1:])


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The result without that many blocks: its perplexity and its accuracy as a part of the original's."""

    place: tuple[Step, ...]
    blocks: int
    perplexity: float | None
    accuracy: float | None
    has_passed: bool
    is_chosen: bool

    def dominates(self, other: "Trial") -> bool:
        """Whether it is better in one of blocks, perplexity and accuracy, and as good in the others."""
        mine, its = (
            (each.blocks, -math.inf if each.perplexity is None else -each.perplexity, each.accuracy or 0.0)
            for each in (self, other)
        )
        return mine != its and all(a >= b for a, b in zip(mine, its, strict=True))


def trials_of(report: Report) -> list[Trial]:
    """Those of a search for the deepest cut, the one that removes least first; none where one depth was asked for."""
    known = [
        Trial(
            place=base,
            blocks=int(blocks),
            perplexity=report.number(*base, "measured", "perplexity_ratio"),
            accuracy=report.number(*base, "measured", "accuracy_kept"),
            has_passed=(has_passed := report.is_true(*base, "passed")),
            is_chosen=has_passed and blocks == len(report.blocks("removed_blocks")),
        )
        for base in (("gate", "trials", row) for row in report.rows("gate", "trials"))
        if (blocks := report.number(*base, "blocks")) is not None
    ]
    return sorted(known, key=lambda one: one.blocks)


def trials(report: Report) -> Table | None:
    """What each depth of a search would have been worth."""
    known = trials_of(report)
    if not known:
        return None
    rows: list[list[Cell]] = []
    for one in known:
        has_measured = one.perplexity is not None or one.accuracy is not None
        star = " *" if has_measured and not any(other.dominates(one) for other in known) else ""
        problem: Cell = (": ", report.words(*one.place, "problem")) if report.text(*one.place, "problem") else ()
        rows.append(
            [
                (report.figure(*one.place, "blocks"), f"{star}{' (taken)' if one.is_chosen else ''}"),
                (report.figure(*one.place, "measured", "perplexity_ratio", as_=RATIO),),
                (report.figure(*one.place, "measured", "accuracy_kept", as_=share),),
                (verdict(one.has_passed), *problem),
                (report.figure(*one.place, "seconds", as_=duration),),
            ]
        )
    return Table(
        caption="Search for the deepest cut",
        columns=(
            Column(key="blocks", heading="Blocks removed"),
            Column(key="perplexity", heading="Perplexity ratio"),
            Column(key="accuracy", heading="Accuracy kept"),
            Column(key="verdict", heading="Gate", is_words=True),
            Column(key="seconds", heading="Time"),
        ),
        rows=rows,
        marked=frozenset(at for at, one in enumerate(known) if one.is_chosen),
        note="A star: no other trial removes more at as low a perplexity and as much accuracy.",
    )


ORDERS = ("step", "group")
"""Columns beside the blocks of a candidate, where any row has them."""
_CANDIDATE_COLUMNS = (
    Column(key="distance", heading="Distance before the fit (half turns)"),
    Column(key="influence", heading="Influence (1 - cosine)", is_brief=False),
    Column(key="residual", heading="Residual after the fit (ratio)"),
    Column(key="plain_loss", heading="Loss without maps (nats)", is_brief=False),
    Column(key="held_out_loss", heading="Loss on held-out tokens (nats)"),
    Column(key="held_out_score", heading="Score on held-out tokens (log ratio)"),
)
CANDIDATE_MEASURES = tuple(one.key for one in _CANDIDATE_COLUMNS)


def candidates(report: Report) -> Table | None:
    """The cuts that were looked at: the chosen ones first, then the best."""
    rows = list(report.rows("candidates", most=MOST_CANDIDATES))
    if not rows:
        return None
    ranked = sorted(rows, key=partial(_rank, report))[:SHOWN_CANDIDATES]
    measured = [
        one
        for one in _CANDIDATE_COLUMNS
        if any(report.number("candidates", row, one.key) is not None for row in ranked)
    ]
    orders = [name for name in ORDERS if any(report.number("candidates", row, name) for row in rows)]
    sources = report.names("candidates", ranked[0], "source_losses")[:MOST_SOURCES]
    sources = sources if len(sources) > 1 else []
    cells: list[list[Cell]] = []
    for row in ranked:
        base = ("candidates", row)
        mark = " (chosen)" if report.is_true(*base, "chosen") else ""
        estimate: Cell = ("~",) if report.is_true(*base, "estimated") else ()
        cells.append(
            [
                (*window(report, *base), mark),
                *((report.figure(*base, name),) for name in orders),
                *(
                    (*(estimate if one.key == "held_out_loss" else ()), report.figure(*base, one.key, as_=LOSS))
                    for one in measured
                ),
                *((report.figure(*base, "source_losses", name, as_=LOSS),) for name in sources),
            ]
        )
    some = f"The {len(ranked)} best of" if len(ranked) < len(rows) else "All"
    return Table(
        caption=f"{some} {counted(len(rows), 'candidates')}",
        columns=(
            Column(key="blocks", heading="Blocks"),
            *(Column(key=name, heading=name.capitalize(), is_brief=False) for name in orders),
            *measured,
            *(Column(key=f"on {name}", heading=f"Loss on {name}") for name in sources),
        ),
        rows=cells,
        marked=frozenset(at for at, row in enumerate(ranked) if report.is_true("candidates", row, "chosen")),
        note="Less is better in all columns. A residual is relative to the stream at the end of the cut. ~: an "
        "estimate from a part of the held-out text.",
    )


def _rank(report: Report, row: int) -> tuple[bool, float, float, float, float]:
    """The chosen first; a residual on fewer tokens is of a cut that was left out early."""
    step, loss, residual = (
        math.inf if value is None else value
        for value in (report.number("candidates", row, name) for name in ("step", "held_out_loss", "residual"))
    )
    tokens = report.number("candidates", row, "tokens") or 0
    return not report.is_true("candidates", row, "chosen"), step, loss, -tokens, residual


def disagreements(report: Report) -> Table | None:
    """Texts that alone would have chosen other blocks."""
    rows: list[list[Cell]] = [
        [
            (report.words("disagreements", row, "source"),),
            window(report, "disagreements", row),
            (report.figure("disagreements", row, "loss", as_=LOSS),),
            (report.figure("disagreements", row, "chosen_loss", as_=LOSS),),
        ]
        for row in report.rows("disagreements")
    ]
    if not rows:
        return None
    return Table(
        caption="Texts that alone would have chosen other blocks",
        columns=(
            Column(key="source", heading="Text"),
            Column(key="blocks", heading="Its choice"),
            Column(key="loss", heading="Loss of its choice (nats)"),
            Column(key="chosen_loss", heading="Loss of the chosen blocks (nats)"),
        ),
        rows=rows,
        note="The choice weighs all texts.",
    )


def answers(report: Report, *, longest: int) -> Table | None:
    """The same prompts to both models, each on one line of at most `longest` characters."""
    rows: list[list[Cell]] = [
        [(report.line("answers", row, name, longest=longest),) for name in ("prompt", "before", "after")]
        for row in report.rows("answers", most=MOST_ANSWERS)
    ]
    if not rows:
        return None
    names = (("prompt", "Prompt"), ("before", "Original"), ("after", "Result"))
    columns = [Column(key=key, heading=heading, is_words=True) for key, heading in names]
    return Table(caption="Answers side by side", columns=columns, rows=rows)


def warnings(report: Report) -> list[Cell]:
    """One sentence each."""
    return [(report.words("warnings", row, "message"), ".") for row in report.rows("warnings")]


def interval(report: Report, base: Sequence[Step], low: str, high: str, *, form: Form) -> Cell:
    """Such as " (1.2 to 1.4)"; nothing where there is none."""
    if report.number(*base, low) is None or report.number(*base, high) is None:
        return ()
    return (" (", report.figure(*base, low, as_=form), " to ", report.figure(*base, high, as_=form), ")")


def window(report: Report, *cut: Step) -> Cell:
    """The blocks of a cut; for what is no single cut, its name."""
    if report.text(*cut, "name"):
        return (report.words(*cut, "name"),)
    first, last = report.number(*cut, "start"), report.number(*cut, "end")
    if first == last:
        return (report.figure(*cut, "start"),)
    return (report.figure(*cut, "start"), "-", report.figure(*cut, "end"))


def plain(cell: Cell) -> str:
    """The text of a cell."""
    return "".join(piece if isinstance(piece, str) else piece.text for piece in cell)


def markdown_table(table: Table) -> str:
    """The lines of a table. Text of strangers is text in it, and no markup."""
    rule = ("---" if at == 0 or one.is_words else "---:" for at, one in enumerate(table.columns))
    lines = [[markdown(one.heading) for one in table.columns], list(rule)]
    for at, row in enumerate(table.rows):
        cells = ["".join(map(_in_markdown, cell)).strip() for cell in row]
        lines.append([f"**{cells[0]}**" if at in table.marked else cells[0], *cells[1:]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _in_markdown(piece: Piece) -> str:
    if isinstance(piece, str):
        return piece.replace("*", "\\*")
    return markdown(piece.text) if piece.value is None else piece.text
