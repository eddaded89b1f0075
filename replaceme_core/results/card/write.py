"""The model card, for somebody who finds the model and has never read of this project."""

from pathlib import Path

from huggingface_hub import ModelCard

from replaceme_core.evaluation.compare import Comparison
from replaceme_core.results.card.evaluation import (
    answers_table,
    gate_table,
    quality_table,
    size_table,
    tasks_table,
    trials_table,
)
from replaceme_core.results.card.front_matter import front_matter
from replaceme_core.results.card.making import calibration, choice, picture, removal
from replaceme_core.results.card.usage import limits, make_again, terms, use
from replaceme_core.results.card.words import Names
from replaceme_core.results.outcome import RunOutcome
from replaceme_core.results.plot import draw_layers

CARD = "README.md"


def write_card(directory: Path, outcome: RunOutcome) -> None:
    """Write `README.md` into `directory`, and the picture beside it where it can be drawn.

    `ModelCard` parses the header that it is given, and refuses what is no valid one.
    """
    names = Names.of(outcome)
    drawn = None
    if outcome.layer_angles is not None:
        drawn = draw_layers(directory, outcome.layer_angles, removed=outcome.removed)
    sections = [
        ("", [summary(outcome, names), *(f"> **Warning:** {one.message}." for one in outcome.warnings)]),
        ("## Size and speed", [size_table(outcome)]),
        ("## Quality", [quality_table(outcome), tasks_table(outcome), gate_table(outcome), trials_table(outcome)]),
        ("## Answers", [answers_table(outcome.answers)]),
        ("## Use", [use(outcome, names)]),
        ("## How it was made", [removal(outcome), picture(outcome, drawn), choice(outcome), calibration(outcome)]),
        ("## Limits", [limits(outcome, names)]),
        ("## Make it again", [make_again(outcome, names)]),
        ("## Licence", [terms(outcome, names)]),
    ]
    body = [f"# {names.title}"]
    for heading, parts in sections:
        written = [part for part in parts if part]
        body += [heading, *written] if heading and written else written
    header = front_matter(outcome, names)
    card = ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n")
    card.save(directory / CARD)


def summary(outcome: RunOutcome, names: Names) -> str:
    """What it is, in one paragraph."""
    blocks = len(outcome.removed) + len(outcome.kept)
    parts = [f"{names.base} with {len(outcome.kept)} of its {blocks} layers."]
    comparison = outcome.comparison
    if comparison is not None:
        saved = 1 - comparison.after.parameters / comparison.before.parameters
        first = comparison.texts[0]
        parts.append(
            f"It has {saved:.0%} fewer parameters{_faster(comparison)}, and its perplexity is "
            f"{first.ratio:.2f} times that of the original on {names.text(first.name)}."
        )
    parts.append(
        "The architecture is the original one, no parameter was added, and nothing was trained: any software that runs "
        "the original runs this model too."
        if not outcome.irregular
        else "The architecture is the original one, no parameter was added, and nothing was trained."
    )
    return " ".join(parts)


def _faster(comparison: Comparison) -> str:
    """How much faster it is, where the runs tell both models apart; else empty."""
    verbs = {"prefill": "reads text", "decode": "writes"}
    told = [
        f"{verbs[name]} {change.ratio:.2f} times as fast"
        for name, change in comparison.speed_changes.items()
        if change.told_apart
    ]
    return "".join(f", {part}" for part in told)
