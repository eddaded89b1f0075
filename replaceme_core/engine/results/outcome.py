"""The outcome of a run, and how it is written: `replaceme.json`, with the card and the page that are made from it."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from replaceme_core.engine.activations.cache import file_digest
from replaceme_core.engine.activations.capture import CaptureRecord
from replaceme_core.engine.evaluation.compare import Answer, Comparison, judge
from replaceme_core.engine.evaluation.speed import speed_changes
from replaceme_core.engine.methods.task import Candidate, Pruning
from replaceme_core.engine.model.changes import kept_blocks
from replaceme_core.engine.model.load import load_config
from replaceme_core.engine.model.safetensors_io import tensors_of
from replaceme_core.engine.results.layer_angles import LayerAngles
from replaceme_core.engine.results.stage_clock import StageRecord
from replaceme_core.engine.run import Run
from replaceme_core.families.layout import MapStructure, irregular_lists
from replaceme_core.families.resolve import part_config
from replaceme_core.hub.model_config import ModelOutline
from replaceme_core.hub.model_files import CARRIED_FILES, CONFIG, read_config, side_files, weight_files
from replaceme_core.hub.port import REPORT
from replaceme_core.hub.quantized import DEQUANTIZED, scheme_of
from replaceme_core.plan.plan import Estimate, estimate
from replaceme_core.plan.resources import Workload, shape_of
from replaceme_core.report.card import read_base_card, write_card
from replaceme_core.report.page import PAGE, render_page
from replaceme_core.request.gate import Trial
from replaceme_core.runner.messages import PastJob, Stage

FORMAT = 1
"""Of `replaceme.json`."""
MANY = 0.4
"""Share of the answers from which on a fault of them is a warning."""
FAR_WORSE = 2.0
"""Times the ratio of perplexities on the first text from which on that of another text is a warning."""
_IRREGULAR = (
    "the kinds of its blocks ({} in config.json) follow no fixed step; converters to GGUF, MLX and ONNX that compute "
    "them from the number of the block give a wrong model: use compute.pattern_safe for these"
)
_LEFT_OUT = (
    "the time budget did not allow {}, which may give a better model: raise or leave out method.time_budget_seconds "
    "(--time-budget)"
)

_FAULTS: Sequence[tuple[str, str, Callable[[Answer], bool]]] = (
    ("answers_loop", "repeat themselves", lambda one: one.loops),
    ("answers_empty", "are empty", lambda one: not one.text),
)
_NOT_HEALED = "healing changed nothing, and this is the model without it: {}"


def warnings_of(comparison: Comparison | None) -> Iterator[tuple[str, str]]:
    """Code and sentence of each fault of the pruned model that the source model does not have."""
    if comparison is None:
        return
    before, after = comparison.answers_before, comparison.answers_after
    count = len(after)
    for code, fault, has_it in _FAULTS:
        now, was = (sum(map(has_it, answers)) for answers in (after, before))
        if now > was and now / count >= MANY:
            yield code, f"{now} of {count} answers of the pruned model {fault}; of the source model {was}"
    same, were_same = (_most_alike([one.text for one in answers]) for answers in (after, before))
    if same > max(were_same, 1) and same / count >= MANY:
        yield "answers_same", f"{same} of {count} different prompts get the same answer from the pruned model"
    if not comparison.texts:
        return
    home, *others = comparison.texts
    worst = max(others, key=lambda one: one.ratio, default=home)
    if worst.ratio > FAR_WORSE * home.ratio:
        yield (
            "worse_elsewhere",
            f"on {worst.name} text the perplexity is {worst.ratio:.1f} times that of the source model, on {home.name} "
            f"{home.ratio:.1f} times: calibrate on more kinds of text",
        )


def _most_alike(texts: Sequence[str]) -> int:
    """How many of `texts` are equal to the most frequent one; empty ones do not count."""
    return max((texts.count(text) for text in texts if text), default=0)


def disagreements(candidates: Sequence[Candidate]) -> list[dict[str, object]]:
    """For each `source` that prefers another window than the chosen one: the window from `start` to `end`, and losses.

    Rows of a choice in steps or in groups do not count: they are no alternatives to each other.
    """
    rows = [row for row in candidates if row.source_losses and row.step is None and row.group is None]
    chosen = next((dict(row.source_losses) for row in rows if row.chosen), {})
    found: list[dict[str, object]] = []
    for source, loss in chosen.items():
        best = min(rows, key=lambda row: dict(row.source_losses)[source])
        least = dict(best.source_losses)[source]
        if least < loss:
            found.append({"source": source, **asdict(best.cut), "loss": least, "chosen_loss": loss})
    return found


def plan_run(
    work: Workload, directory: Path, outline: ModelOutline, *, is_remote: bool, history: Sequence[PastJob]
) -> Estimate:
    """What the run is expected to take, from the headers of the model in `directory`."""
    weights, side = weight_files(directory), side_files(directory)
    return estimate(
        work,
        shape_of(outline, read_config(directory), tensors_of(weights)),
        download=sum(path.stat().st_size for path in (*weights, *side)),
        side_bytes=sum(path.stat().st_size for path in side if path.name in (CONFIG, *CARRIED_FILES)),
        is_remote=is_remote,
        history=history,
    )


def plan_against_actual(planned: Estimate, stages: Iterable[StageRecord], *, output: Path) -> dict[str, object]:
    """Expected and actual seconds and peaks of each stage that ran, and the size of the weights in `output`."""
    on_device = planned.device_bytes > 0
    rows = []
    for record in stages:
        peak = planned.memory[Stage(record.name)]
        rows.append(
            {
                "name": record.name,
                "expected_seconds": planned.duration.stages[Stage(record.name)],
                "seconds": record.seconds,
                "expected_peak_bytes": peak.device if on_device else peak.host,
                "peak_bytes": record.peak_bytes,
            }
        )
    return {
        "basis": str(planned.duration.basis),
        "stages": rows,
        "expected_weight_bytes": planned.weights,
        "weight_bytes": sum(path.stat().st_size for path in weight_files(output)),
    }


def write_report(
    directory: Path,
    run: Run,
    *,
    pruning: Pruning,
    captured: CaptureRecord,
    comparison: Comparison | None,
    angles: LayerAngles | None,
    structure: MapStructure,
    planned: Estimate,
    trials: Sequence[Trial],
    healing: Mapping[str, object] | None,
    provenance: Mapping[str, object],
    job_id: str | None,
    imported_bytes: int,
) -> dict[str, object]:
    """Write the file into `directory`, after the card and the page that show it, and return its content.

    `structure` is that of the maps that the model takes. `comparison` is `None` where nothing was measured, `angles`
    where they were not computed. `trials` are those of a search for the deepest cut, `healing` is what a training came
    to, where one was asked for. `imported_bytes` is the resident memory before anything was loaded.
    """
    spec, clock = run.spec, run.clock
    texts = comparison.texts if comparison else ()
    gate = (
        judge(spec.gate, comparison).model_copy(update={"trials": tuple(trials)}) if spec.gate and comparison else None
    )
    irregular = irregular_lists(part_config(load_config(directory)), layout=run.outline.layout)
    warnings = [("not_measured", message) for message in dict.fromkeys(run.unmeasured.found)]
    warnings += warnings_of(comparison)
    if (scheme := scheme_of(read_config(run.given))) is not None:
        warnings.append((DEQUANTIZED, scheme.note))
    if irregular:
        warnings.append(("irregular_pattern", _IRREGULAR.format(", ".join(irregular))))
    if healing is not None and healing["problem"] is not None:
        warnings.append(("not_healed", _NOT_HEALED.format(healing["problem"])))
    if pruning.left_out:
        warnings.append(("time_budget", _LEFT_OUT.format(" and ".join(pruning.left_out))))
    report: dict[str, object] = {
        "format": FORMAT,
        "job_id": job_id,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": str(spec.method.name),
        "chosen_method": pruning.method or str(spec.method.name),
        "removed_blocks": list(pruning.removed),
        "kept_blocks": kept_blocks(run.outline.blocks, pruning.removed),
        "candidates": [candidate.as_dict() for candidate in pruning.candidates],
        "disagreements": disagreements(pruning.candidates),
        "stages": [asdict(stage) for stage in clock.records.values()],
        "loading_seconds": clock.loading_seconds,
        "plan": plan_against_actual(planned, clock.records.values(), output=directory),
        "captured": asdict(captured),
        "imported_bytes": imported_bytes,
        "before": asdict(comparison.before) if comparison else None,
        "after": asdict(comparison.after) if comparison else None,
        "speed_changes": speed_changes(comparison.before.speed, comparison.after.speed) if comparison else {},
        "inputs": str(run.outline.layout.inputs),
        "auto_class": run.outline.auto_class,
        "texts": [one.as_dict() for one in texts],
        "images": [asdict(one) for one in comparison.images] if comparison else [],
        "experts": [asdict(one) for one in comparison.experts] if comparison else [],
        "tasks": [one.as_dict() for one in comparison.tasks] if comparison else [],
        "reused": list(comparison.reused) if comparison else [],
        "gate": None if gate is None else gate.model_dump(mode="json"),
        "answers": _answers(comparison) if comparison else [],
        "healing": healing,
        "warnings": [{"code": code, "message": message} for code, message in warnings],
        "layers": [{"block": block, "distance": one} for block, one in enumerate(angles.blocks)] if angles else [],
        "windows": {"tokens": angles.tokens, "distances": angles.windows} if angles else None,
        "irregular": list(irregular),
        "spec": spec.model_dump(mode="json"),
        **provenance,
        "result": {path.name: file_digest(path) for path in (directory / CONFIG, *weight_files(directory))},
    }
    write_card(
        directory,
        report,
        base=read_base_card(run.source),
        is_chat=run.tokenizer is not None and run.tokenizer.chat_template is not None,
        structure=spec.method.structure or structure,
        has_text=run.outline.reads_images and run.outline.layout.part is not None,
    )
    (directory / PAGE).write_text(render_page(report), encoding="utf-8")
    (directory / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return report


def _answers(comparison: Comparison) -> list[dict[str, object]]:
    return [
        {
            "prompt": old.prompt,
            "before": old.text,
            "after": new.text,
            "before_loops": old.loops,
            "after_loops": new.loops,
        }
        for old, new in zip(comparison.answers_before, comparison.answers_after, strict=True)
    ]
