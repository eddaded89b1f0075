"""The model card: what was done to which model, on what, and what it cost."""

from pathlib import Path

import yaml

from replaceme_core.admission.removal import block_ranges
from replaceme_core.evaluation.measure import Measurement
from replaceme_core.numerics.structure import MapStructure
from replaceme_core.selection.choose import Candidate
from replaceme_core.spec import CompressionSpec, Method

_REMOVAL = {
    Method.DROP: "They are those across which the stream turns least, as one window",
    Method.BLOCK_INFLUENCE: "They are those of least influence, after [ShortGPT](https://arxiv.org/abs/2403.03853)",
    Method.PERPLEXITY_GREEDY: "They were taken one at a time, each the one whose loss costs least, after "
    "[SLEB](https://arxiv.org/abs/2402.09025)",
}


def write_card(
    directory: Path,
    *,
    spec: CompressionSpec,
    structure: MapStructure,
    removed: list[int],
    kept: list[int],
    candidates: list[Candidate],
    before: Measurement | None,
    after: Measurement | None,
    chosen_method: str | None = None,
) -> None:
    """Write `README.md` with the front matter that the Hub reads."""
    front: dict[str, object] = {
        "base_model": spec.model.repo_id,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["replaceme", "depth-pruning", "compression"],
    }
    if not spec.calibration.dataset.startswith(("builtin:", "file:")):
        front["datasets"] = [spec.calibration.dataset]
    method = Method(chosen_method or spec.method.name)
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
        f"# {spec.model.repo_id.split('/')[-1]}, {len(kept)} of {len(removed) + len(kept)} blocks",
        f"Blocks {block_ranges(removed)} of [{spec.model.repo_id}](https://huggingface.co/{spec.model.repo_id}) "
        f"(revision `{spec.model.revision}`) were removed. {_method(spec, method, structure)}"
        " The architecture is the original one with fewer layers; no parameter was added and nothing was trained.",
        _calibration(spec),
    ]
    if before is not None and after is not None:
        parts.append(_table(before, after))
    if any(candidate.held_out_loss is not None and candidate.distance is not None for candidate in candidates):
        parts.append(_choice(candidates))
    parts.append(
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'name = "{spec.output.repo_id or directory.name}"\n'
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)\n```"
    )
    parts.append("`replaceme.json` holds the full specification, revisions, versions, seeds and measurements.")
    (directory / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _method(spec: CompressionSpec, method: Method, structure: MapStructure) -> str:
    if method in _REMOVAL:
        how = _REMOVAL[method] if spec.drop is None else "They were named in the request"
        return f"{how} (method `{method}`). Nothing stands in for them."
    if method is Method.REFIT:
        return (
            "The output projections of the blocks that stay were solved anew in closed form, from the first cut on, so "
            "that the model's hidden states follow those of the original (method `refit`, going on from "
            "[ReplaceMe](https://arxiv.org/abs/2505.02819))."
        )
    if method is Method.MERGE:
        return (
            "The differences of their parameters to those of the block before them were added to that block "
            "(method `merge`, after [LaCo](https://arxiv.org/abs/2402.11187))."
        )
    shape, place = {
        MapStructure.FULL: ("linear", "output projection"),
        MapStructure.DIAGONAL: ("diagonal", "last norm"),
    }[structure]
    return (
        f"A {shape} map, solved in closed form and folded into the {place} of the block before them, "
        f"stands in for them (method `{method}`, after [ReplaceMe](https://arxiv.org/abs/2505.02819))."
    )


def _calibration(spec: CompressionSpec) -> str:
    calibration = spec.calibration
    revision = f" (revision `{calibration.revision}`)" if calibration.revision else ""
    share = calibration.self_generated
    written = f"; {share:.0%} of them were written by the original model itself" if share else ""
    return (
        f"Calibration: `{calibration.dataset}`{revision}, {calibration.samples} sequences of "
        f"{calibration.max_length} tokens, seed {calibration.seed}{written}."
    )


def _table(before: Measurement, after: Measurement) -> str:
    rows = [
        ("blocks", f"{before.blocks}", f"{after.blocks}"),
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("bytes of weights", f"{before.bytes:,}", f"{after.bytes:,}"),
        (f"perplexity ({after.tokens:,} predictions)", f"{before.perplexity:.2f}", f"{after.perplexity:.2f}"),
        (f"tokens per second ({after.dtype})", f"{before.tokens_per_second:.0f}", f"{after.tokens_per_second:.0f}"),
    ]
    lines = ["| | before | after |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n\nPerplexity is on text of the calibration source that calibration did not see."


def _choice(candidates: list[Candidate]) -> str:
    tried = [candidate for candidate in candidates if candidate.held_out_loss is not None]
    tried.sort(key=lambda candidate: candidate.held_out_loss or 0.0)
    lines = ["| blocks | distance | residual | held-out loss |", "|---|---|---|---|"]
    for row in tried:
        mark = " (chosen)" if row.chosen else ""
        figures = (row.distance, row.residual, row.held_out_loss)
        told = " | ".join("-" if figure is None else f"{figure:.4f}" for figure in figures)
        lines.append(f"| {row.cut}{mark} | {told} |")
    return f"Of {len(candidates)} windows these were replayed on held-out tokens:\n\n" + "\n".join(lines)
