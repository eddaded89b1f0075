"""`replaceme.json`: how a model came about, and everything needed to make it again. Written last."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from replaceme_core.engine.activations.content_key import file_digest
from replaceme_core.engine.results.disagreement import disagreements
from replaceme_core.engine.results.outcome import RunOutcome
from replaceme_core.engine.results.plan_report import plan_against_actual
from replaceme_core.hub.model_files import CONFIG, weight_files
from replaceme_core.hub.port import REPORT
from replaceme_core.report.page import write_page

FORMAT = 1


def write_report(directory: Path, outcome: RunOutcome) -> dict[str, object]:
    """Write the file into `directory`, after the page that shows it, and return its content."""
    comparison, angles = outcome.comparison, outcome.layer_angles
    report: dict[str, object] = {
        "format": FORMAT,
        "job_id": outcome.job_id,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": str(outcome.spec.method.name),
        "chosen_method": str(outcome.method),
        "removed_blocks": outcome.removed,
        "kept_blocks": outcome.kept,
        "candidates": [candidate.as_dict() for candidate in outcome.candidates],
        "disagreements": [one.as_dict() for one in disagreements(outcome.candidates)],
        "stages": [asdict(stage) for stage in outcome.times.stages],
        "memory": [sample.as_dict() for sample in outcome.times.memory],
        "loading_seconds": outcome.times.loading_seconds,
        "plan": plan_against_actual(outcome.planned, outcome.times.stages, output=directory),
        "captured": outcome.captured.as_dict(),
        "imported_bytes": outcome.imported_bytes,
        "before": comparison.before.as_dict() if comparison else None,
        "after": comparison.after.as_dict() if comparison else None,
        "speed_changes": {name: asdict(change) for name, change in outcome.speed_changes.items()},
        "texts": [one.as_dict() for one in outcome.texts],
        "tasks": [one.as_dict() for one in outcome.tasks],
        "reused": list(comparison.reused) if comparison else [],
        "gate": None if outcome.gate is None else outcome.gate.model_dump(mode="json"),
        "answers": [one.as_dict() for one in outcome.answers],
        "warnings": [one.as_dict() for one in outcome.warnings],
        "layers": angles.blocks_as_rows() if angles else [],
        "windows": angles.windows_as_dict() if angles else None,
        "irregular": list(outcome.irregular),
        "spec": outcome.spec.model_dump(mode="json"),
        **outcome.provenance.as_dict(),
        "result": {path.name: file_digest(path) for path in (directory / CONFIG, *weight_files(directory))},
    }
    write_page(directory, report)
    (directory / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return report
