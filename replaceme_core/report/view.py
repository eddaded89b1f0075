"""What a result says, in one place for all who show it: page, model card, terminal and dashboard.

Tables of labelled values are made from a `Report`. The printers choose among their columns, and decide no words and no
digits.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from replaceme_core.report.figures import (
    EXACT,
    LOSS,
    NONE,
    PERPLEXITY,
    RATIO,
    SHARE,
    WHOLE,
    Form,
    duration,
    number,
    percent,
    rate,
    size,
)
from replaceme_core.report.reading import Piece, Place, Report, Step
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.removal import block_ranges
from replaceme_core.wording import counted, markdown

MOST_CANDIDATES, SHOWN_CANDIDATES, MOST_SOURCES, MOST_ANSWERS, MOST_STAGES = 4000, 24, 6, 20, 20
Cell = tuple[Piece, ...]
NOT_SIGNIFICANT: Cell = ("not significant",)
_Row = TypeVar("_Row")
SIDES: tuple[Step, Step] = ("before", "after")


@dataclass(frozen=True)
class Column:
    """`is_brief`: also where there is little room, as in a terminal. `is_words`: not aligned as numbers are.

    `note` explains its values, where it is shown.
    """

    key: str
    heading: str
    note: str = ""
    is_brief: bool = True
    is_words: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """`rows` have a cell for each column; the first is the heading of its row. `marked` rows stand out.

    `about` explains the table, without its columns.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    marked: frozenset[int] = frozenset()
    about: str = ""

    @property
    def note(self) -> str:
        """What explains the table and the columns that it has, each sentence once."""
        return " ".join(dict.fromkeys(text for text in (self.about, *(one.note for one in self.columns)) if text))

    def only(self, *keys: str, most: int | None = None) -> "Table":
        """These columns of the first `most` rows; without `keys`, the columns that are brief."""
        kept = [at for at, one in enumerate(self.columns) if (one.key in keys if keys else one.is_brief)]
        rows = [[row[at] for at in kept] for row in self.rows[:most]]
        return replace(self, columns=[self.columns[at] for at in kept], rows=rows)


def table_of(
    caption: str,
    rows: Sequence[_Row],
    *columns: tuple[Column, Callable[[_Row], Cell]],
    fixed: Collection[str] = (),
    is_marked: Callable[[_Row], bool] = lambda row: False,
    about: str = "",
) -> Table | None:
    """A table of columns, each with what makes the cell of a row; `None` without rows.

    A column in which no row has a value is left out, unless it is the first or its key is in `fixed`.
    """
    if not rows:
        return None
    cells = [[of(row) for row in rows] for _, of in columns]
    kept = [
        at
        for at, (column, _) in enumerate(columns)
        if at == 0 or column.key in fixed or any(piece not in ("", NONE) for cell in cells[at] for piece in cell)
    ]
    return Table(
        caption=caption,
        columns=[columns[at][0] for at in kept],
        rows=[[cells[at][row] for at in kept] for row in range(len(rows))],
        marked=frozenset(at for at, row in enumerate(rows) if is_marked(row)),
        about=about,
    )


def figures(
    report: Report, *path: Step, as_: Form = number, ends: tuple[str, str] | None = None
) -> Callable[[Place], Cell]:
    """What makes a cell of a row at a place: the number at `path` below it, with its interval between `ends`.

    The ends are beside the number; without both of them it has no interval.
    """

    def cell(base: Place) -> Cell:
        found, beside = report.figure(*base, *path, as_=as_), (*base, *path[:-1])
        if ends is None or report.bounds(*beside, low=ends[0], high=ends[1]) is None:
            return (found,)
        low, high = (report.figure(*beside, end, as_=as_) for end in ends)
        return (found, " (", low, " to ", high, ")")

    return cell


def words(report: Report, *path: Step) -> Callable[[Place], Cell]:
    """What makes a cell of a row at a place: the text at `path` below it."""
    return lambda base: (report.words(*base, *path),)


@dataclass(frozen=True)
class Quantity:
    """What is measured of both models. `path` is where it is below `before` and `after` of a report.

    Its metrics are `before.NAME` and `after.NAME`, in `unit`.
    """

    name: str
    label: str
    unit: str
    form: Form
    path: tuple[str, ...]

    @property
    def speed(self) -> str:
        """Its name in `speed_changes`, if it is a median of several runs."""
        return self.path[-2] if self.path[-1] == "median" else ""

    def cells(self, report: Report) -> Callable[[Place], Cell]:
        """What makes the cell of a model: its value; a median of several runs with the slowest and the fastest one."""
        return figures(report, *self.path, as_=self.form, ends=("low", "high") if self.speed else None)

    def change(self, report: Report) -> Cell:
        """By which part the result differs from the original."""
        if self.speed and report.at("speed_changes", self.speed, "told_apart") is False:
            return NOT_SIGNIFICANT
        return (report.change(("before", *self.path), ("after", *self.path)),)


QUANTITIES = (
    Quantity("blocks", "Blocks", "blocks", WHOLE, ("blocks",)),
    Quantity("parameters", "Parameters", "parameters", WHOLE, ("parameters",)),
    Quantity("bytes", "Weights on disk", "bytes", size, ("bytes",)),
    Quantity("perplexity", "Perplexity", "ratio", PERPLEXITY, ("perplexity",)),
    Quantity("word_perplexity", "Perplexity per word", "ratio", PERPLEXITY, ("word_perplexity",)),
    Quantity("byte_perplexity", "Perplexity per byte", "ratio", RATIO, ("byte_perplexity",)),
    Quantity("tokens_per_second", "Tokens per second with all logits", "tokens/s", rate, ("tokens_per_second",)),
    Quantity("prefill_tokens_per_second", "Tokens read per second", "tokens/s", rate, ("speed", "prefill", "median")),
    Quantity("decode_tokens_per_second", "Tokens written per second", "tokens/s", rate, ("speed", "decode", "median")),
    Quantity("images_per_second", "Images per second", "images/s", rate, ("speed", "images", "median")),
    Quantity("cache_bytes_per_token", "KV cache per token", "bytes", size, ("speed", "cache_bytes_per_token")),
    Quantity("peak_bytes", "Peak memory of weights and tensors", "bytes", size, ("speed", "peak_bytes")),
    Quantity("looping_answers", "Answers that end in a repetition", "answers", WHOLE, ("looping_answers",)),
    Quantity("distinct_4grams", "Different runs of four tokens", "ratio", SHARE, ("distinct_4grams",)),
)
"""In the order in which they are shown. A new one is a row here, and a value of `Measurement` or of `Speed`."""
_ABOUT_QUANTITIES = {
    "perplexity": "Perplexity is on text that calibration did not see; less is better.",
    "prefill_tokens_per_second": "Reading and writing are of one sequence: the median of several runs after a warm-up, "
    "both models in turn; in brackets the slowest and the fastest run. Not significant: the runs differ more than the "
    "models.",
    "images_per_second": "Images are read eight at a time: the median of several runs after a warm-up, both models in "
    "turn; in brackets the slowest and the fastest run. Not significant: the runs differ more than the models.",
    "parameters": "Tied parameters count once.",
}


def both_models(report: Report) -> Table | None:
    """Each quantity that was measured of one of the models.

    The speed of the forward passes that gave the perplexity is shown where reading and writing were not timed.
    """
    is_timed = report.number("after", "speed", "prefill", "median") is not None
    measured = [
        one
        for one in QUANTITIES
        if any(report.number(side, *one.path) is not None for side in SIDES)
        and not (is_timed and one.name == "tokens_per_second")
    ]
    return table_of(
        "Both models",
        measured,
        (Column("name", "Measured"), lambda one: (one.label,)),
        (Column("before", "Original"), lambda one: one.cells(report)(("before",))),
        (Column("after", "Result"), lambda one: one.cells(report)(("after",))),
        (Column("change", "Change"), lambda one: one.change(report)),
        fixed=("before", "after", "change"),
        about=" ".join(text for name, text in _ABOUT_QUANTITIES.items() if name in [one.name for one in measured]),
    )


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One of the figures that tell most of a result; `is_better` than the original, `None` where neither is known."""

    label: str
    value: Cell
    note: Cell
    is_better: bool | None = None


def headlines(report: Report) -> list[Headline]:
    """Quality, size, speed, and where the result is worst: those that were measured."""
    read = report.places("texts")
    found = [_on_text(report, _FIRST, base) for base in read[:1]]
    for base in report.places("images"):
        far = report.figure(*base, "distance", as_=LOSS)
        count = report.figure(*base, "images", as_=WHOLE)
        found.append(Headline(label=DISTANCE, value=(far,), note=("1 - cosine, ", count, " images")))
    size_of_both = next(one for one in QUANTITIES if one.name == "bytes")
    timed = [one for one in QUANTITIES if one.name in SPEEDS and report.number("after", *one.path) is not None]
    for one in (size_of_both, *timed[:1]):
        before, after = (report.number(side, *one.path) for side in SIDES)
        if before is None or after is None:
            continue
        change, note = one.change(report), _of_both(report, as_=one.form, below=one.path)
        differs = before != after and not isinstance(change[0], str)
        is_better = (after < before) is (one is size_of_both) if differs else None
        found.append(Headline(label=one.label, value=change, note=note, is_better=is_better))
    worst = max(read[1:], key=lambda base: report.number(*base, "ratio") or 0.0, default=None)
    return found if worst is None else [*found, _on_text(report, _WORST, worst)]


def _of_both(report: Report, text: Place = (), *, as_: Form, below: Place = ()) -> Cell:
    """The value of the result and that of the original, on a text or on the whole."""
    before, after = (report.figure(*text, side, *below, as_=as_) for side in SIDES)
    return (after, ", original ", before)


_FIRST, _WORST, DISTANCE = "Perplexity", "Worst on other text", "Distance of embeddings"
LOSSES = (("texts", "ratio"), ("images", "distance"))
"""Where a report has the loss of quality, which is better the less it is."""
SPEEDS = ("decode_tokens_per_second", "images_per_second")
"""The speed that users feel."""


def _on_text(report: Report, label: str, text: Place) -> Headline:
    """The ratio of perplexities on one text."""
    ratio, ends = report.number(*text, "ratio"), report.bounds(*text, low="ratio_low", high="ratio_high")
    is_sure = ratio is not None and (ends is None or not ends[0] <= 1 <= ends[1])
    return Headline(
        label=label,
        value=(report.figure(*text, "ratio", as_=RATIO), " times"),
        note=(report.words(*text, "name"), ": ", *_of_both(report, text, as_=PERPLEXITY)),
        is_better=ratio < 1 if ratio is not None and is_sure else None,
    )


_DIVERGENCE = "Divergence: how far the distributions of the next token are apart (Kullback-Leibler)."
_AGREEMENT = "Same choice: how often both models find the same token most likely."
_CHANCE = "Chance: what guessing gets right."


def texts(report: Report) -> Table | None:
    """Perplexity on each text."""
    return table_of(
        "Perplexity on each text",
        report.places("texts"),
        (Column("name", "Text"), words(report, "name")),
        (Column("before", "Original"), figures(report, "before", as_=PERPLEXITY)),
        (Column("after", "Result"), figures(report, "after", as_=PERPLEXITY)),
        (
            Column("ratio", "Ratio (95 % interval)"),
            figures(report, "ratio", as_=RATIO, ends=("ratio_low", "ratio_high")),
        ),
        (
            Column("divergence", "Divergence (nats)", _DIVERGENCE, is_brief=False),
            figures(report, "divergence", as_=RATIO),
        ),
        (Column("agreement", "Same choice", _AGREEMENT), figures(report, "agreement", as_=SHARE)),
        (Column("tokens", "Tokens", is_brief=False), figures(report, "tokens", as_=WHOLE)),
        fixed=("before", "after", "ratio"),
        about="Perplexity: how unexpected the next token is on average; less is better.",
    )


def experts(report: Report) -> Table | None:
    """How often the routers of a model with experts choose others, of the blocks that are kept."""
    return table_of(
        "Experts that are chosen",
        report.places("experts"),
        (Column("block", "Block of the original"), figures(report, "block", as_=WHOLE)),
        (Column("changed", "Tokens that go to other experts"), figures(report, "changed", as_=SHARE)),
        about="Of the first text: at how many tokens the router chooses other experts than in the original.",
    )


_NEAREST = "Same nearest image: how often both models find the same other image most alike."


def images(report: Report) -> Table | None:
    """How far embeddings of images are from those of the original."""
    return table_of(
        "Embeddings of images",
        report.places("images"),
        (Column("name", "Images"), words(report, "name")),
        (
            Column("distance", "Distance to the original's (95 % interval)"),
            figures(report, "distance", as_=LOSS, ends=("distance_low", "distance_high")),
        ),
        (Column("agreement", "Same nearest image", _NEAREST), figures(report, "agreement", as_=SHARE)),
        (Column("images", "Number"), figures(report, "images", as_=WHOLE)),
        fixed=("distance",),
        about="Distance: 1 - cosine between the embeddings of one image by both models, on average; less is better.",
    )


def tasks(report: Report) -> Table | None:
    """Accuracy in each task that has one."""
    of_images = bool(report.places("images"))
    return table_of(
        "Accuracy in each task",
        [base for base in report.places("tasks") if has_accuracy(report, base)],
        (Column("name", "Task"), words(report, "name")),
        (Column("before", "Original (95 % interval)"), accuracy(report, "before")),
        (Column("after", "Result (95 % interval)"), accuracy(report, "after")),
        (Column("kept", "Kept"), figures(report, "kept", as_=SHARE)),
        (Column("kept_above_chance", "Kept above chance", _CHANCE), figures(report, "kept_above_chance", as_=SHARE)),
        (Column("chance", "Chance", _CHANCE, is_brief=False), figures(report, "chance", as_=SHARE)),
        *(
            ()
            if of_images
            else ((Column("few_shot", "Examples", is_brief=False), figures(report, "few_shot", as_=WHOLE)),)
        ),
        (Column("samples", "Images" if of_images else "Questions"), figures(report, "samples", as_=WHOLE)),
        about=_OF_IMAGES if of_images else "Scored by lm-evaluation-harness; intervals are Wilson's.",
    )


def healing(report: Report) -> Table | None:
    """What training after the removal came to, on held-out text; the last column is empty where it changed nothing."""
    base = ("healing",)
    if report.at(*base) is None:
        return None
    trained = [plain((report.figure(*base, name, as_=WHOLE), f" {name}")) for name in ("tokens", "parameters")]
    kept = "" if report.is_true(*base, "is_kept") else " The trained model is not the result."
    return table_of(
        "Loss before and after training, in nats",
        report.places(*base, "panel"),
        (Column("name", "Held-out text"), words(report, "name")),
        (Column("original", "Original"), figures(report, "original", as_=LOSS)),
        (Column("closed_form", "Untrained"), figures(report, "closed_form", as_=LOSS)),
        (Column("healed", "Trained"), figures(report, "healed", as_=LOSS)),
        fixed=("original", "closed_form"),
        about=f"On text that no training saw; less is better. Trained on {trained[0]}: {trained[1]}.{kept}",
    )


COMPARED = (both_models, texts, images, tasks, healing)
"""What a result is worth beside its original, in the order in which terminal and dashboard show it."""
_OF_IMAGES = (
    "Linear probe: a ridge regression on the embeddings of four fifths of the images classifies the others. Zero-shot: "
    "the label whose name is most alike. Retrieval: the caption that is most alike. Intervals are Wilson's."
)


def has_accuracy(report: Report, task: Place) -> bool:
    """Of both models."""
    return all(report.number(*task, side, "accuracy") is not None for side in SIDES)


def accuracy(report: Report, *path: Step) -> Callable[[Place], Cell]:
    """What makes a cell of the result of one model at `path` below a place: its accuracy, with its interval."""
    return figures(report, *path, "accuracy", as_=SHARE, ends=("low", "high"))


def gate(report: Report) -> Table | None:
    """What the result had to be worth; missed criteria are marked."""
    return table_of(
        "Criteria of the gate",
        report.places("gate", "criteria"),
        (Column("name", "Criterion"), words(report, "name")),
        (Column("value", "Measured"), figures(report, "value", as_=EXACT)),
        (Column("limit", "Limit", is_words=True), lambda base: _limits(report, base)),
        (Column("verdict", "Verdict", is_words=True), lambda base: (verdict(report.is_true(*base, "passed")),)),
        fixed=("value", "limit"),
        is_marked=lambda base: not report.is_true(*base, "passed"),
        about="Divergence is in nats, embedding_distance in 1 - cosine; all others are ratios to the original model.",
    )


def verdict(passed: bool) -> str:
    """In one word."""
    return "passed" if passed else "✗ missed"


def _limits(report: Report, criterion: Place) -> Cell:
    given = [
        (" and ", words, report.figure(*criterion, name, as_=EXACT))
        for words, name in (("at least ", "min"), ("at most ", "max"))
        if report.number(*criterion, name) is not None
    ]
    return tuple(piece for pieces in given for piece in pieces)[1:]


LOSS_OF = ("perplexity_ratio", "embedding_distance")
"""The criterion that says most of a language model, and of a model of images."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The result without that many blocks: its `loss` and its accuracy as a part of the original's.

    The loss is a ratio of perplexities, or of a model of images the distance of its embeddings.
    """

    place: Place
    blocks: int
    loss: float | None
    accuracy: float | None
    has_passed: bool
    is_chosen: bool

    def dominates(self, other: "Trial") -> bool:
        """Whether it is better in one of blocks, loss and accuracy, and as good in the others."""
        mine, its = (
            (each.blocks, -math.inf if each.loss is None else -each.loss, each.accuracy or 0.0)
            for each in (self, other)
        )
        return mine != its and all(a >= b for a, b in zip(mine, its, strict=True))


def trials_of(report: Report) -> list[Trial]:
    """Those of a search for the deepest cut, the one that removes least first; none where one depth was asked for."""
    known = [
        Trial(
            place=base,
            blocks=int(blocks),
            # whichever there is: what a job has of its report does not say what the model reads
            loss=next((loss for name in LOSS_OF if (loss := report.number(*base, "measured", name)) is not None), None),
            accuracy=report.number(*base, "measured", "accuracy_kept"),
            has_passed=(has_passed := report.is_true(*base, "passed")),
            is_chosen=has_passed and blocks == len(report.blocks("removed_blocks")),
        )
        for base in report.places("gate", "trials")
        if (blocks := report.number(*base, "blocks")) is not None
    ]
    return sorted(known, key=lambda one: one.blocks)


def trials(report: Report) -> Table | None:
    """What each depth of a search would have been worth."""
    known = {one.place: one for one in trials_of(report)}
    asked = [report.text(*base, "name") for base in report.places("gate", "criteria")]
    forms = {name: _CRITERIA.get(name, RATIO) for name in (*LOSS_OF, "accuracy_kept", *asked)}

    def blocks(base: Place) -> Cell:
        one = known[base]
        has_measured = one.loss is not None or one.accuracy is not None
        is_best = has_measured and one.has_passed and not any(other.dominates(one) for other in known.values())
        star = " *" if is_best else ""
        return (report.figure(*base, "blocks"), f"{star}{' (taken)' if one.is_chosen else ''}")

    def outcome(base: Place) -> Cell:
        problem = report.words(*base, "problem")
        return (verdict(known[base].has_passed), *(() if problem == NONE else (": ", problem)))

    return table_of(
        "Search for the deepest cut",
        list(known),
        (Column("blocks", "Blocks removed"), blocks),
        *(
            (Column(name, name.capitalize().replace("_", " ")), figures(report, "measured", name, as_=form))
            for name, form in forms.items()
        ),
        (Column("verdict", "Gate", is_words=True), outcome),
        (Column("seconds", "Time"), figures(report, "seconds", as_=duration)),
        is_marked=lambda base: known[base].is_chosen,
        about="A star: it passes, and no other trial removes more and loses as little.",
    )


_CRITERIA: Mapping[str, Form] = {
    "accuracy_kept": SHARE,
    "agreement": SHARE,
    "size_ratio": SHARE,
    "embedding_distance": LOSS,
}
"""How values of criteria are written in the table of trials; others are ratios."""


ORDERS = ("step", "group")
"""Columns beside the blocks of a candidate, where any row has them."""
_RESIDUAL = "A residual is relative to the stream at the end of the cut."


def candidates(report: Report) -> Table | None:
    """The cuts that were looked at: the chosen ones first, then the best."""
    rows = report.places("candidates", most=MOST_CANDIDATES)
    ranked = sorted(rows, key=lambda base: _rank(report, base))[:SHOWN_CANDIDATES]
    orders = [name for name in ORDERS if any(report.number(*base, name) for base in rows)]
    sources = report.names(*ranked[0], "source_losses")[:MOST_SOURCES] if ranked else []
    loss, tokens, unit = "Loss", "tokens", "nats"
    if report.of_images:  # a model of images is judged by its embeddings
        loss, tokens, unit = "Distance of embeddings", "images", "1 - cosine"
    columns = (
        Column("distance", "Distance before the fit (half turns)"),
        Column("influence", "Influence (1 - cosine)", is_brief=False),
        Column("residual", "Residual after the fit (ratio)", _RESIDUAL),
        Column("plain_loss", f"{loss} without maps ({unit})", is_brief=False),
        Column("held_out_loss", f"{loss} on held-out {tokens} ({unit})"),
    )

    def blocks(base: Place) -> Cell:
        return (*window(report, base), " (chosen)" if report.is_true(*base, "chosen") else "")

    some = f"The {len(ranked)} best of" if len(ranked) < len(rows) else "All"
    return table_of(
        f"{some} {counted(len(rows), 'candidates')}",
        ranked,
        (Column("blocks", "Blocks"), blocks),
        *((Column(name, name.capitalize(), is_brief=False), figures(report, name)) for name in orders),
        *((one, figures(report, one.key, as_=LOSS)) for one in columns),
        *(
            (Column(f"on {name}", f"Loss on {name}"), figures(report, "source_losses", name, as_=LOSS))
            for name in sources
            if len(sources) > 1
        ),
        is_marked=lambda base: report.is_true(*base, "chosen"),
        about="Less is better in all columns.",
    )


def _rank(report: Report, candidate: Place) -> tuple[bool, float, float, float, float]:
    """The chosen first; a residual on fewer tokens is of a cut that was left out early."""
    step, loss, residual = (
        math.inf if (value := report.number(*candidate, name)) is None else value
        for name in ("step", "held_out_loss", "residual")
    )
    tokens = report.number(*candidate, "tokens") or 0
    return not report.is_true(*candidate, "chosen"), step, loss, -tokens, residual


def disagreements(report: Report) -> Table | None:
    """Texts that alone would have chosen other blocks."""
    return table_of(
        "Texts that alone would have chosen other blocks",
        report.places("disagreements"),
        (Column("source", "Text"), words(report, "source")),
        (Column("blocks", "Its choice"), lambda base: window(report, base)),
        (Column("loss", "Loss of its choice (nats)"), figures(report, "loss", as_=LOSS)),
        (Column("chosen_loss", "Loss of the chosen blocks (nats)"), figures(report, "chosen_loss", as_=LOSS)),
        about="The choice weighs all texts.",
    )


def answers(report: Report, *, longest: int | None = None) -> Table | None:
    """The same prompts to both models, each whole or on one line of at most `longest` characters."""

    def said(name: str) -> Callable[[Place], Cell]:
        def cell(base: Place) -> Cell:
            text = report.words(*base, name) if longest is None else report.line(*base, name, longest=longest)
            return (text, " (ends in a repetition)") if report.is_true(*base, f"{name}_loops") else (text,)

        return cell

    return table_of(
        "Answers side by side",
        report.places("answers", most=MOST_ANSWERS),
        (Column("prompt", "Prompt", is_words=True), said("prompt")),
        (Column("before", "Original", is_words=True), said("before")),
        (Column("after", "Result", is_words=True), said("after")),
        fixed=("before", "after"),
    )


def stages(report: Report) -> Table | None:
    """What each stage took, and what was expected of it."""

    def expected(name: str, form: Form) -> Callable[[Place], Cell]:
        return lambda base: (report.figure(*planned(report, base), f"expected_{name}", as_=form),)

    memory = "the accelerator's memory" if report.text("device", "type") not in ("", "cpu") else "resident memory"
    peaks = f"Peaks are of {memory} of the process that runs the model."
    basis = {
        "model": "Expected times come from a stated model alone.",
        "measured": "Expected times are corrected by earlier jobs.",
    }.get(report.text("plan", "basis"), "")
    return table_of(
        "Stages, and what was expected" if report.places("plan", "stages") else "Stages",
        report.places("stages", most=MOST_STAGES),
        (Column("name", "Stage"), words(report, "name")),
        (Column("seconds", "Time"), figures(report, "seconds", as_=duration)),
        (Column("expected_seconds", "Expected", basis), expected("seconds", duration)),
        (Column("peak_bytes", "Peak memory", peaks), figures(report, "peak_bytes", as_=size)),
        (Column("expected_bytes", "Expected"), expected("peak_bytes", size)),
    )


def planned(report: Report, stage: Place) -> Place:
    """The place of the same stage in the plan; one where nothing is, if the plan does not have it."""
    name = report.text(*stage, "name")
    found = (one for one in report.places("plan", "stages") if report.text(*one, "name") == name)
    return next(found, ("plan", "stages", name))


def warnings(report: Report) -> list[Cell]:
    """One sentence each."""
    return [(report.words(*base, "message"), ".") for base in report.places("warnings")]


def window(report: Report, cut: Place) -> Cell:
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


# What a job asks for, from its specification


def wanted_removal(spec: Report) -> str:
    """
    >>> [wanted_removal(Report(spec)) for spec in ({"ratio": {"max": 0.5}}, {"drop": [1, 2, 3]}, {"drop": [2]})]
    ['at most 0.5 of the blocks', 'blocks 1-3', 'block 2']
    """
    fixed, most = spec.number("ratio"), spec.number("ratio", "max")
    if fixed is not None:
        return f"{fixed:.4g} of the blocks"
    if most is not None:
        return f"at most {most:.4g} of the blocks"
    drop = spec.blocks("drop")
    return f"block{'s' if len(drop) > 1 else ''} {block_ranges(drop)}" if drop else ""


def wanted_text(spec: Report) -> str:
    """The names of all sources of the calibration text, with the shares that were given."""
    names = []
    for source in spec.places("calibration", "sources"):
        given = spec.number(*source, "share")
        name = spec.text(*source, "dataset") or SELF_GENERATED
        names.append(name if given is None else f"{name} {percent(given)}")
    return ", ".join(names) or spec.text("calibration", "dataset")
