"""What the result is worth beside the original: texts, tasks, size and speed, answers."""

from functools import partial

from replaceme_core.report.figures import size
from replaceme_core.report.forms import Form, digits, interval, share
from replaceme_core.report.parts import Answer, Cell, Part, Plot, Section, Table
from replaceme_core.report.plots.quality import Accuracy, Interval, Ratio, draw_accuracies, draw_ratios
from replaceme_core.report.reading import Report, Step

MOST_PLOTTED = 40
_WHOLE: Form = digits(0)


def quality(report: Report) -> Section | None:
    """Perplexity on each text, accuracy in each task."""
    parts = [*_texts(report), *_tasks(report)]
    if not parts:
        return None
    return Section(
        id="quality",
        title="Quality before and after",
        note="Both models were measured in one run, with the same settings, on text that took no part in making it.",
        parts=parts,
    )


def _texts(report: Report) -> list[Part]:
    rows: list[list[Cell]] = []
    ratios: list[Ratio] = []
    for row in report.rows("texts"):
        base = ("texts", row)
        ratio = (
            report.figure(*base, "ratio", as_=digits(2)),
            *interval(report, base, "ratio_low", "ratio_high", form=digits(2)),
        )
        rows.append(
            [
                (report.words(*base, "name"),),
                (report.figure(*base, "before", as_=digits(2)),),
                (report.figure(*base, "after", as_=digits(2)),),
                ratio,
                (report.figure(*base, "divergence", as_=digits(3)),),
                (report.figure(*base, "agreement", as_=share),),
                (report.figure(*base, "tokens", as_=_WHOLE),),
            ]
        )
        value = report.number(*base, "ratio")
        if value is not None:
            bounds = _bounds(report, *base, low="ratio_low", high="ratio_high")
            ratios.append(Ratio(name=report.text(*base, "name"), value=value, interval=bounds))
    if not rows:
        return []
    table = Table(
        caption="Perplexity on each text",
        header=(
            "Text",
            "Original",
            "Result",
            "Ratio (95 % interval)",
            "Divergence (nats)",
            "Same choice",
            "Tokens",
        ),
        rows=rows,
        note="Perplexity: how unexpected the next token is on average; less is better. Divergence: how far the "
        "distributions of the next token are apart (Kullback-Leibler). Same choice: how often both models find the "
        "same token most likely.",
    )
    parts: list[Part] = [table]
    if ratios:
        shown = ratios[:MOST_PLOTTED]
        parts.append(
            Plot(
                name="perplexity",
                title="Perplexity as a multiple of the original's",
                alt=f"A mark with an error bar for each of {len(shown)} texts; values are in the tables of the report.",
                reading="The further right of the dashed line (as good as the original), the more is lost on that "
                "text. Bars are the 95 % confidence interval: two texts whose bars overlap are not surely different.",
                draw=partial(draw_ratios, shown),
            )
        )
    return parts


def _tasks(report: Report) -> list[Part]:
    rows: list[list[Cell]] = []
    accuracies: list[Accuracy] = []
    for row in report.rows("tasks"):
        base = ("tasks", row)
        before, after = (report.number(*base, side, "accuracy") for side in ("before", "after"))
        if before is None or after is None:
            continue
        rows.append(
            [
                (report.words(*base, "name"),),
                *(_accuracy(report, *base, side) for side in ("before", "after")),
                *((report.figure(*base, name, as_=share),) for name in ("kept", "kept_above_chance", "chance")),
                *((report.figure(*base, name, as_=_WHOLE),) for name in ("few_shot", "samples")),
            ]
        )
        bounds = [_bounds(report, *base, side, low="low", high="high") for side in ("before", "after")]
        accuracies.append(
            Accuracy(
                name=report.text(*base, "name"),
                before=before,
                after=after,
                intervals=(bounds[0], bounds[1]),
                chance=report.number(*base, "chance"),
            )
        )
    if not rows:
        return []
    table = Table(
        caption="Accuracy in each task",
        header=(
            "Task",
            "Original (95 % interval)",
            "Result (95 % interval)",
            "Kept",
            "Kept above chance",
            "Chance",
            "Examples",
            "Questions",
        ),
        rows=rows,
        note="Scored by lm-evaluation-harness; intervals are Wilson's. Chance: what guessing gets right.",
    )
    shown = accuracies[:MOST_PLOTTED]
    plot = Plot(
        name="tasks",
        title="Accuracy in each task",
        alt=f"Two marks with error bars for each of {len(shown)} tasks; the values are in the tables of the report.",
        reading="Circle: the original; square: the result; a short upright line: guessing. Bars are 95 % confidence "
        "intervals: where those of both overlap, the difference may be chance.",
        draw=partial(draw_accuracies, shown),
    )
    return [table, plot]


def _accuracy(report: Report, *base: Step) -> Cell:
    return (report.figure(*base, "accuracy", as_=share), *interval(report, base, "low", "high", form=share))


def _bounds(report: Report, *base: Step, low: str, high: str) -> Interval:
    bounds = report.number(*base, low), report.number(*base, high)
    return None if bounds[0] is None or bounds[1] is None else (bounds[0], bounds[1])


def size_and_speed(report: Report) -> Section | None:
    """Both models: parameters, bytes, memory, tokens a second."""
    if report.number("before", "parameters") is None or report.number("after", "parameters") is None:
        return None
    rows: list[list[Cell]] = []
    for label, path, form in (
        ("Blocks", ("blocks",), _WHOLE),
        ("Parameters", ("parameters",), _WHOLE),
        ("Weights on disk", ("bytes",), size),
        ("Perplexity per word", ("word_perplexity",), digits(2)),
        ("Perplexity per byte", ("byte_perplexity",), digits(3)),
        ("KV cache for each token", ("speed", "cache_bytes_per_token"), size),
        ("Peak memory of weights and tensors", ("speed", "peak_bytes"), size),
    ):
        if report.number("after", *path) is not None:
            old, new = ("before", *path), ("after", *path)
            rows.append(
                [
                    (label,),
                    (report.figure(*old, as_=form),),
                    (report.figure(*new, as_=form),),
                    (report.change(old, new),),
                ]
            )
    for label, name in (("Tokens read per second", "prefill"), ("Tokens written per second", "decode")):
        if report.number("after", "speed", name, "median") is not None:
            rows.append(
                [(label,), *(_rate(report, side, "speed", name) for side in ("before", "after")), _times(report, name)]
            )
    if report.number("after", "speed", "prefill", "median") is None:
        rates = [(report.figure(side, "tokens_per_second", as_=_WHOLE),) for side in _SIDES]
        rows.append([("Tokens read per second",), *rates, ()])
    table = Table(
        caption="Both models",
        header=("Measured", "Original", "Result", "Change"),
        rows=rows,
        note="Speed is that of one sequence: the median of several runs after a warm-up, both models in turn; in "
        "brackets the slowest and the fastest run. Not told apart: the runs differ more than the models. Tied "
        "parameters count once.",
    )
    return Section(id="size", title="Size and speed", parts=[table])


_SIDES = ("before", "after")


def _rate(report: Report, *base: Step) -> Cell:
    return (report.figure(*base, "median", as_=_WHOLE), *interval(report, base, "low", "high", form=_WHOLE))


def _times(report: Report, name: str) -> Cell:
    if not report.is_true("speed_changes", name, "told_apart"):
        return ("not told apart",)
    return (report.figure("speed_changes", name, "ratio", as_=digits(2)), " times as fast")


def answers(report: Report) -> Section | None:
    """The same prompts to both models."""
    found = [
        Answer(
            prompt=(report.words("answers", row, "prompt"),),
            before=(report.words("answers", row, "before"),),
            after=(report.words("answers", row, "after"),),
            notes=(_note(report, row, "before_loops"), _note(report, row, "after_loops")),
        )
        for row in report.rows("answers", most=20)
    ]
    if not found:
        return None
    return Section(
        id="answers",
        title="Answers side by side",
        note="The same prompts to both models, without sampling.",
        parts=found,
    )


def _note(report: Report, row: int, name: str) -> str:
    return "It ends in a repetition." if report.is_true("answers", row, name) else ""
