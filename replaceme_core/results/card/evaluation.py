"""What the card says of both models beside each other: size, speed, quality, answers."""

from collections.abc import Sequence

from replaceme_core.evaluation.answers import NEW_TOKENS, AnswerPair
from replaceme_core.results.card.words import Names, safe, table
from replaceme_core.results.outcome import RunOutcome

ANSWER_CHARACTERS = 240
_MEGABYTE = 1e6
_SIDES = ("original", "this model")


def size_table(outcome: RunOutcome) -> str:
    """Empty where nothing was measured."""
    if outcome.comparison is None:
        return ""
    before, after = outcome.comparison.before, outcome.comparison.after
    rows = [
        ("layers", f"{before.blocks}", f"{after.blocks}"),
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("weights on disk (MB)", f"{before.bytes / _MEGABYTE:,.1f}", f"{after.bytes / _MEGABYTE:,.1f}"),
        ("tokens read per second", f"{before.tokens_per_second:,.0f}", f"{after.tokens_per_second:,.0f}"),
    ]
    hardware, compute = outcome.provenance.device["hardware"], outcome.spec.compute
    plural = "" if compute.threads == 1 else "s"
    threads = f" with {compute.threads} thread{plural}" if compute.device == "cpu" else ""
    note = (
        f"Speed was measured on {hardware}{threads}, in {after.dtype}, on sequences of "
        f"{outcome.spec.calibration.max_length} tokens, both models in turn."
    )
    return table(("", *_SIDES), rows) + f"\n\n{note}"


def quality_table(outcome: RunOutcome) -> str:
    """Perplexity on each text; empty where nothing was measured."""
    if not outcome.texts:
        return ""
    names, length = Names.of(outcome), outcome.spec.calibration.max_length
    rows = [
        (
            names.text(one.name),
            f"{one.before:.2f}",
            f"{one.after:.2f}",
            f"{one.ratio:.2f}x",
            f"{one.agreement:.0%}",
            f"{one.tokens:,}",
        )
        for one in outcome.texts
    ]
    note = (
        "Perplexity (lower is better) says how unexpected the next token of a text is on average. Same choice: how "
        f"often both models find the same next token the most likely. Sequences of {length} tokens, in "
        f"{outcome.spec.compute.dtype}, of text that took no part in making this model."
    )
    header = ("perplexity on", *_SIDES, "ratio", "same choice", "tokens")
    return table(header, rows) + f"\n\n{note}"


def gate_table(outcome: RunOutcome) -> str:
    """What the result had to be worth; empty where there was no gate."""
    if outcome.gate is None:
        return ""
    rows = [
        (one.name.replace("_", " "), f"{one.value:.4g}", one.limits, "passed" if one.passed else "**missed**")
        for one in outcome.gate.criteria
    ]
    return "Limits that were set before this model was made:\n\n" + table(("", "measured", "limit", "verdict"), rows)


def answers_table(answers: Sequence[AnswerPair]) -> str:
    """The same prompts to both models; empty where no model was asked."""
    if not answers:
        return ""
    lines = ["| prompt | original | this model |", "|---|---|---|"]
    lines += [f"| {_cell(one.prompt)} | {_cell(one.before)} | {_cell(one.after)} |" for one in answers]
    return f"The same prompts to both models, without sampling, at most {NEW_TOKENS} tokens each:\n\n" + "\n".join(
        lines
    )


def _cell(text: str) -> str:
    line = " ".join(text.split())
    line = line if len(line) <= ANSWER_CHARACTERS else line[: ANSWER_CHARACTERS - 1].rstrip() + "…"
    return safe(line) or "(nothing)"
