"""What the card says of both models beside each other: size, speed, quality, answers."""

from collections.abc import Sequence

from replaceme_core.evaluation.answers import NEW_TOKENS, AnswerPair
from replaceme_core.evaluation.compare import TextResult
from replaceme_core.evaluation.speed import Rate, Speed
from replaceme_core.evaluation.tasks import TaskResult
from replaceme_core.gate.trials import HEADER, by_depth, trial_rows
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
    ]
    if before.speed is None or after.speed is None:
        rows.append(("tokens read per second", f"{before.tokens_per_second:,.0f}", f"{after.tokens_per_second:,.0f}"))
    else:
        rows += _speed_rows(before.speed, after.speed)
    hardware, compute = outcome.provenance.device["hardware"], outcome.spec.compute
    plural = "" if compute.threads == 1 else "s"
    threads = f" with {compute.threads} thread{plural}" if compute.device == "cpu" else ""
    note = f"Speed was measured on {hardware}{threads}, in {after.dtype}, "
    if after.speed is None:
        note += f"on sequences of {outcome.spec.calibration.max_length} tokens, both models in turn."
    else:
        note += (
            f"for one sequence: a prompt of {after.speed.prompt_tokens} tokens is read and {after.speed.new_tokens} "
            f"tokens are written, {after.speed.prefill.runs} times after a warm-up, both models in turn. The median "
            f"is given, with the slowest and the fastest run. {_told_apart(outcome)}"
        )
    return table(("", *_SIDES), rows) + f"\n\n{note}"


def _speed_rows(before: Speed, after: Speed) -> list[tuple[str, str, str]]:
    sides = (before, after)
    cells: list[tuple[str, list[str]]] = [
        ("tokens read per second", [_rate(side.prefill) for side in sides]),
        ("tokens written per second", [_rate(side.decode) for side in sides]),
        ("KV cache for each token (bytes)", [f"{side.cache_bytes_per_token:,.0f}" for side in sides]),
        ("peak memory of weights and tensors (MB)", [f"{side.peak_bytes / _MEGABYTE:,.1f}" for side in sides]),
    ]
    return [(label, old, new) for label, (old, new) in cells]


def _rate(rate: Rate) -> str:
    return f"{rate.median:,.0f} ({rate.low:,.0f} to {rate.high:,.0f})"


def _told_apart(outcome: RunOutcome) -> str:
    """A sentence for what is within the spread of the runs; empty where nothing is."""
    verbs = {"prefill": "reading", "decode": "writing"}
    unclear = [verbs[name] for name, change in outcome.speed_changes.items() if not change.told_apart]
    if not unclear:
        return "Both differences are greater than this spread."
    return f"In {' and '.join(unclear)} the models were not told apart: the runs differ more than the models."


def interval(one: TextResult) -> str:
    """The confidence interval of the ratio; empty where there is none."""
    if one.ratio_low is None or one.ratio_high is None:
        return ""
    return f" ({one.ratio_low:.2f} to {one.ratio_high:.2f})"


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
            f"{one.ratio:.2f}x{interval(one)}",
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
    if any(one.ratio_low is not None for one in outcome.texts):
        note += (
            " In brackets is the 95 percent confidence interval of the ratio, from how much it differs between "
            "sequences."
        )
    per_unit = _per_word_and_byte(outcome)
    header = ("perplexity on", *_SIDES, "ratio", "same choice", "tokens")
    return table(header, rows) + f"\n\n{note}{per_unit}"


def _per_word_and_byte(outcome: RunOutcome) -> str:
    """A sentence with values that can be compared with models of another tokenizer; empty where there are none."""
    assert outcome.comparison is not None, "there are texts"
    before, after = outcome.comparison.before, outcome.comparison.after
    if not (before.word_perplexity and after.word_perplexity and before.byte_perplexity and after.byte_perplexity):
        return ""
    return (
        f" On the first text the perplexity per word is {before.word_perplexity:,.2f} for the original and "
        f"{after.word_perplexity:,.2f} for this model, per byte {before.byte_perplexity:.3f} and "
        f"{after.byte_perplexity:.3f}: unlike that per token, it can be compared with models of another tokenizer."
    )


def tasks_table(outcome: RunOutcome) -> str:
    """Each task with the accuracies of both models; empty where none with an accuracy were run."""
    rows = [
        (
            f"`{pair.before.name}`",
            *(_accuracy(side) for side in (pair.before, pair.after)),
            *("-" if share is None else f"{share:.0%}" for share in pair.after.kept_of(pair.before).values()),
            "-" if pair.before.chance is None else f"{pair.before.chance:.0%}",
            f"{pair.before.few_shot}",
            f"{pair.before.samples:,}",
        )
        for pair in outcome.tasks
        if pair.before.accuracy is not None
    ]
    if not rows:
        return ""
    header = ("accuracy in", *_SIDES, "kept", "kept above chance", "chance", "examples", "questions")
    note = (
        "Tasks of [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness), scored by it. "
        "In brackets is the 95 percent confidence interval (Wilson). Chance: what guessing gets right."
    )
    return f"{table(header, rows)}\n\n{note}"


def _accuracy(result: TaskResult) -> str:
    bounds = result.interval
    return f"{result.accuracy:.1%}" + ("" if bounds is None else f" ({bounds[0]:.1%} to {bounds[1]:.1%})")


def gate_table(outcome: RunOutcome) -> str:
    """What the result had to be worth; empty where there was no gate."""
    if outcome.gate is None:
        return ""
    rows = [
        (one.name.replace("_", " "), f"{one.value:.4g}", one.limits, "passed" if one.passed else "**missed**")
        for one in outcome.gate.criteria
    ]
    return "Limits that were set before this model was made:\n\n" + table(("", "measured", "limit", "verdict"), rows)


def trials_table(outcome: RunOutcome) -> str:
    """The depths that were tried; empty where one was asked for."""
    if not outcome.trials:
        return ""
    found = len(outcome.removed)
    rows = [
        (f"**{blocks}**" if one.blocks == found else blocks, *rest)
        for (blocks, *rest), one in zip(trial_rows(outcome.trials), by_depth(outcome.trials), strict=True)
    ]
    note = "This model is bold. A star: no other trial removes more at as low a perplexity and as much accuracy."
    return f"The deepest cut that passes these limits was looked for:\n\n{table(HEADER, rows)}\n\n{note}"


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
