"""What the card says of how the model was made: which layers went, why these, what replaces them, on which text."""

from replaceme_core.admission.removal import block_ranges
from replaceme_core.map_structure import MapStructure
from replaceme_core.method_traits import TRAITS
from replaceme_core.plurals import counted
from replaceme_core.results.card.words import Names, table
from replaceme_core.results.disagreement import disagreements
from replaceme_core.results.outcome import RunOutcome

MOST_ROWS = 8
_SHAPE_AND_PLACE = {
    MapStructure.FULL: {"shape": "linear", "place": "output projection"},
    MapStructure.DIAGONAL: {"shape": "diagonal", "place": "last norm"},
}


def removal(outcome: RunOutcome) -> str:
    """What was removed and what compensates for it, in the words of the method's traits."""
    name, traits = outcome.method, TRAITS[outcome.method]
    plural = "Layers" if len(outcome.removed) > 1 else "Layer"
    verb = "were" if len(outcome.removed) > 1 else "was"
    card = traits.card.format(name=name, **_SHAPE_AND_PLACE[outcome.structure])
    removed = f"{plural} {block_ranges(outcome.removed)} of the original (counted from 0) {verb} removed."
    if traits.selection_card is None:
        return f"{removed} {card}"
    how = traits.selection_card if outcome.spec.drop is None else "They were named in the request"
    return f"{removed} {how} (method `{name}`). {card}"


def choice(outcome: RunOutcome) -> str:
    """The alternatives that were tried to the end, the best first; empty where there were none of one kind."""
    tried = [
        row for row in outcome.candidates if row.held_out_loss is not None and row.step is None and row.group is None
    ]
    if len(tried) < 2:
        return ""
    tried.sort(key=lambda row: row.held_out_loss or 0.0)
    shown = [row for row in tried if row.chosen] + [row for row in tried if not row.chosen]
    rows = [
        (
            f"**{row.cut}**" if row.chosen else f"{row.cut}",
            f"{'about ' if row.estimated else ''}{row.held_out_loss:.4f}",
        )
        for row in shown[:MOST_ROWS]
    ]
    parts = [
        f"Of {len(outcome.candidates)} cuts that were compared, these lost least, each with what compensates for it, "
        "on calibration text that was set aside (mean loss for each token in nats; the chosen one is bold):",
        table(("layers removed", "loss"), rows),
    ]
    parts += [
        f"On `{one.source}` alone, the removal of layers {one.start}-{one.end} loses less: {one.loss:.4f} instead of "
        f"{one.chosen_loss:.4f}. The choice weighs all texts."
        for one in disagreements(outcome.candidates)
    ]
    return "\n\n".join(parts)


def calibration(outcome: RunOutcome) -> str:
    """The text, its revisions and its amount."""
    names, text = Names.of(outcome), outcome.spec.calibration
    mix = [source for source in text.mix if source.share > 0]
    amount = f"{counted(text.samples, 'sequences')} of {text.max_length} tokens (seed {text.seed})"
    described = [
        names.text(source.name) + (f" (revision `{source.revision}`)" if source.revision else "") for source in mix
    ]
    repeating = text.repeating
    beside = f", and {counted(repeating, 'sequences')} with repeated passages of the others" if repeating else ""
    if len(mix) == 1:
        return f"Calibration: {amount} of {described[0]}{beside}."
    parts = [f"{source.share:.0%} {name}" for source, name in zip(mix, described, strict=True)]
    return f"Calibration: {amount}: {', '.join(parts[:-1])} and {parts[-1]}{beside}."
