"""The model card: what was done to which model, with which text, and what it cost."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from replaceme_core.admission.removal import block_ranges
from replaceme_core.calibration_spec import SELF_GENERATED, CalibrationSpec, MixedSource
from replaceme_core.evaluation.answers import AnswerPair
from replaceme_core.evaluation.compare import TextResult
from replaceme_core.evaluation.measure import Measurement
from replaceme_core.map_structure import MapStructure
from replaceme_core.method_traits import TRAITS
from replaceme_core.results.disagreement import Disagreement, disagreements
from replaceme_core.results.outcome import RunOutcome
from replaceme_core.selection.candidate import Candidate

CELL_CHARACTERS = 160
_SHAPE_AND_PLACE = {
    MapStructure.FULL: {"shape": "linear", "place": "output projection"},
    MapStructure.DIAGONAL: {"shape": "diagonal", "place": "last norm"},
}


def write_card(directory: Path, outcome: RunOutcome) -> None:
    """Write `README.md` with the front matter that the Hub reads."""
    spec = outcome.spec
    front: dict[str, object] = {
        "base_model": spec.model.repo_id,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["replaceme", "depth-pruning", "compression"],
    }
    datasets = list(dict.fromkeys(source.name for source in spec.calibration.mix if source.is_on_hub))
    if datasets:
        front["datasets"] = datasets
    blocks = len(outcome.removed) + len(outcome.kept)
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
        f"# {spec.model.repo_id.split('/')[-1]}, {len(outcome.kept)} of {blocks} blocks",
        f"Blocks {block_ranges(outcome.removed)} of [{spec.model.repo_id}](https://huggingface.co/{spec.model.repo_id})"
        f" (revision `{spec.model.revision}`) were removed. {_method(outcome)}"
        " The architecture is the original one with fewer layers; no parameter was added and nothing was trained.",
        _calibration(spec.calibration),
    ]
    if outcome.comparison is not None:
        found = outcome.comparison
        parts += [_table(found.before, found.after, text=_first_text(spec.calibration)), _texts(found.texts)]
    if outcome.answers:
        parts.append(_answers(outcome.answers))
    parts += [f"**Warning:** {one.message}." for one in outcome.warnings]
    if any(row.held_out_loss is not None and row.distance is not None for row in outcome.candidates):
        parts.append(_choice(outcome.candidates))
        parts += [_disagreement(one) for one in disagreements(outcome.candidates)]
    parts.append(
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'name = "{spec.output.repo_id or directory.name}"\n'
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)\n```"
    )
    parts.append("`replaceme.json` holds the full specification, revisions, versions, seeds and measurements.")
    (directory / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _method(outcome: RunOutcome) -> str:
    """What was removed and what compensates for it, in the words of the method's traits."""
    name, traits = outcome.method, TRAITS[outcome.method]
    card = traits.card.format(name=name, **_SHAPE_AND_PLACE[outcome.structure])
    if traits.selection_card is None:
        return card
    how = traits.selection_card if outcome.spec.drop is None else "They were named in the request"
    return f"{how} (method `{name}`). {card}"


def _calibration(calibration: CalibrationSpec) -> str:
    mix = [source for source in calibration.mix if source.share > 0]
    amount = f"{calibration.samples} sequences of {calibration.max_length} tokens, seed {calibration.seed}"
    if len(mix) == 1:
        return f"Calibration: {_source(mix[0])}, {amount}."
    parts = [f"{source.share:.0%} {_source(source)}" for source in mix]
    return f"Calibration: {amount}: {', '.join(parts[:-1])} and {parts[-1]}."


def _source(source: MixedSource) -> str:
    if source.self_generated:
        return "text that the original model generated itself"
    revision = f" (revision `{source.revision}`)" if source.revision else ""
    return f"`{source.name}`{revision}"


def _first_text(calibration: CalibrationSpec) -> str:
    """The text that the result is measured on."""
    return next(_source(source) for source in calibration.mix if not source.self_generated)


def _table(before: Measurement, after: Measurement, *, text: str) -> str:
    rows = [
        ("blocks", f"{before.blocks}", f"{after.blocks}"),
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("bytes of weights", f"{before.bytes:,}", f"{after.bytes:,}"),
        (f"perplexity ({after.tokens:,} predictions)", f"{before.perplexity:.2f}", f"{after.perplexity:.2f}"),
        (f"tokens per second ({after.dtype})", f"{before.tokens_per_second:.0f}", f"{after.tokens_per_second:.0f}"),
    ]
    lines = ["| | before | after |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + f"\n\nPerplexity is on text of {text} that calibration did not see."


def _texts(texts: Sequence[TextResult]) -> str:
    """How the result does on each kind of text."""
    lines = ["| perplexity on | before | after | times | same first choice |", "|---|---|---|---|---|"]
    for one in texts:
        name = "text that the original model generated itself" if one.name == SELF_GENERATED else f"`{one.name}`"
        lines.append(f"| {name} | {one.before:.2f} | {one.after:.2f} | {one.ratio:.2f} | {one.agreement:.0%} |")
    note = "Same first choice: how often both models find the same next token most likely."
    return "\n".join(lines) + f"\n\n{note}"


def _answers(answers: Sequence[AnswerPair]) -> str:
    """The same prompts to both models, without sampling; only the beginning of each answer."""
    lines = ["| prompt | original model | this model |", "|---|---|---|"]
    lines += [f"| {_cell(one.prompt)} | {_cell(one.before)} | {_cell(one.after)} |" for one in answers]
    return "Answers without sampling, cut after a few words:\n\n" + "\n".join(lines)


def _cell(text: str) -> str:
    """On one line, and nothing that ends a cell or begins markup."""
    line = " ".join(text.split())
    line = line if len(line) <= CELL_CHARACTERS else line[: CELL_CHARACTERS - 1].rstrip() + "…"
    return "".join(f"\\{letter}" if letter in "\\|`*_<>[]" else letter for letter in line) or "(nothing)"


def _disagreement(found: Disagreement) -> str:
    return (
        f"On `{found.source}` alone, the removal of blocks {found.start}-{found.end} loses less: {found.loss:.4f} "
        f"instead of {found.chosen_loss:.4f}. The choice weighs all texts."
    )


def _choice(candidates: Sequence[Candidate]) -> str:
    tried = [candidate for candidate in candidates if candidate.held_out_loss is not None]
    tried.sort(key=lambda candidate: candidate.held_out_loss or 0.0)
    lines = ["| blocks | distance | residual | held-out loss |", "|---|---|---|---|"]
    for row in tried:
        mark = " (chosen)" if row.chosen else ""
        figures = (row.distance, row.residual, row.held_out_loss)
        shown = ["-" if figure is None else f"{figure:.4f}" for figure in figures]
        shown[-1] = f"~{shown[-1]}" if row.estimated else shown[-1]
        lines.append(f"| {row.cut}{mark} | {' | '.join(shown)} |")
    note = (
        "\n\nA loss with ~ is an estimate from a part of these tokens." if any(row.estimated for row in tried) else ""
    )
    return f"Of {len(candidates)} windows these were evaluated on held-out tokens:\n\n" + "\n".join(lines) + note
