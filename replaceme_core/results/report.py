"""`replaceme.json`: everything needed to tell how a model came about, and to make it again. Written last."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from replaceme_core.activations.record import CaptureRecord
from replaceme_core.evaluation.measure import Measurement
from replaceme_core.results.stage_clock import StageRecord
from replaceme_core.selection.choose import Candidate
from replaceme_core.spec import CompressionSpec

FORMAT = 1
FILE = "replaceme.json"
_PACKAGES = ("replaceme", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub")


def write_report(
    directory: Path,
    *,
    spec: CompressionSpec,
    job_id: str | None,
    removed: list[int],
    kept: list[int],
    candidates: Sequence[Candidate],
    stages: Sequence[StageRecord],
    before: Measurement | None,
    after: Measurement | None,
    activations: CaptureRecord,
    loading_seconds: float,
    imported_bytes: int,
    chosen_method: str | None = None,
) -> dict[str, object]:
    """Write the file into `directory` and return its content.

    `imported_bytes`: resident before anything was loaded. `chosen_method`: where the request left the method open.
    """
    report: dict[str, object] = {
        "format": FORMAT,
        "job_id": job_id,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": str(spec.method.name),
        "chosen_method": chosen_method or str(spec.method.name),
        "removed_blocks": removed,
        "kept_blocks": kept,
        "candidates": [candidate.as_dict() for candidate in candidates],
        "stages": [asdict(stage) for stage in stages],
        "loading_seconds": loading_seconds,
        "captured": activations.as_dict(),
        "imported_bytes": imported_bytes,
        "before": before.as_dict() if before else None,
        "after": after.as_dict() if after else None,
        "spec": spec.model_dump(mode="json"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }
    (directory / FILE).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return report
