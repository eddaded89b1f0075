"""The outcome of a run, and how it is written: `replaceme.json`, with the card and the page that are made from it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from replaceme_core.engine.activations.cache import file_digest
from replaceme_core.engine.activations.capture import CaptureRecord
from replaceme_core.engine.evaluation.compare import AnswerPair, Comparison, TextResult, judge, pair
from replaceme_core.engine.methods.task import Candidate
from replaceme_core.engine.model.safetensors_io import tensors_of
from replaceme_core.engine.results.layer_angles import LayerAngles
from replaceme_core.engine.results.provenance import Provenance
from replaceme_core.engine.results.stage_clock import RunTimes, StageRecord
from replaceme_core.families.layout import MapStructure
from replaceme_core.hub.model_config import ModelOutline
from replaceme_core.hub.model_files import CARRIED_FILES, CONFIG, read_config, side_files, weight_files
from replaceme_core.hub.port import REPORT
from replaceme_core.plan.plan import Estimate, estimate
from replaceme_core.plan.resources import Workload, shape_of
from replaceme_core.report.card import BaseCard, write_card
from replaceme_core.report.page import write_page
from replaceme_core.request.gate import Trial
from replaceme_core.request.method import Method
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.runner.messages import PastJob, Stage

FORMAT = 1
"""Of `replaceme.json`."""
MANY = 0.4
"""Share of the answers from which on a fault of them is a warning."""
FAR_WORSE = 2.0
"""Times the ratio of perplexities on the first text from which on that of another text is a warning."""


@dataclass(frozen=True, kw_only=True)
class ResultWarning:
    """`code` is for programs, `message` one sentence for a person."""

    code: str
    message: str


def warnings_of(
    answers: Sequence[AnswerPair],
    texts: Sequence[TextResult],
    *,
    irregular: Sequence[str] = (),
    left_out: Sequence[str] = (),
    unmeasured: Sequence[str] = (),
) -> list[ResultWarning]:
    """Faults of the pruned model that the source model does not have, and what a longer time might have made better.

    `texts` begins with the one that is like the calibration. `irregular` are lists of the config that converters
    compute otherwise. `left_out` are steps that the time budget did not allow. `unmeasured` are
    sentences on what failed in the evaluation.
    """
    failed = [ResultWarning(code="not_measured", message=message) for message in dict.fromkeys(unmeasured)]
    return [*failed, *_of_answers(answers), *_of_texts(texts), *_of_lists(irregular), *_of_budget(left_out)]


def _of_budget(left_out: Sequence[str]) -> list[ResultWarning]:
    if not left_out:
        return []
    message = (
        f"the time budget did not allow {' and '.join(left_out)}, which may give a better model: raise or leave out "
        "method.time_budget_seconds (--time-budget)"
    )
    return [ResultWarning(code="time_budget", message=message)]


def _of_lists(irregular: Sequence[str]) -> list[ResultWarning]:
    if not irregular:
        return []
    message = (
        f"the kinds of its layers ({', '.join(irregular)} in config.json) follow no fixed step; converters to GGUF, "
        "MLX and ONNX that compute them from the number of the layer give a wrong model: use compute.pattern_safe for "
        "these"
    )
    return [ResultWarning(code="irregular_pattern", message=message)]


def _of_texts(texts: Sequence[TextResult]) -> list[ResultWarning]:
    """Whether the result is far worse on some text than on that of its calibration."""
    if not texts:
        return []
    home, *others = texts
    worst = max(others, key=lambda one: one.ratio, default=home)
    if worst.ratio <= FAR_WORSE * home.ratio:
        return []
    message = (
        f"on {worst.name} text the perplexity is {worst.ratio:.1f} times that of the source model, on {home.name} "
        f"{home.ratio:.1f} times: calibrate on more kinds of text"
    )
    return [ResultWarning(code="worse_elsewhere", message=message)]


def _of_answers(answers: Sequence[AnswerPair]) -> list[ResultWarning]:
    count = len(answers)
    if not count:
        return []
    found = []
    looping, looped = sum(one.after_loops for one in answers), sum(one.before_loops for one in answers)
    if looping > looped and looping / count >= MANY:
        message = f"{looping} of {count} answers of the pruned model repeat themselves; of the source model {looped}"
        found.append(ResultWarning(code="answers_loop", message=message))
    empty, was_empty = sum(not one.after for one in answers), sum(not one.before for one in answers)
    if empty > was_empty and empty / count >= MANY:
        message = f"{empty} of {count} answers of the pruned model are empty; of the source model {was_empty}"
        found.append(ResultWarning(code="answers_empty", message=message))
    same, were_same = _most_alike([one.after for one in answers]), _most_alike([one.before for one in answers])
    if same > max(were_same, 1) and same / count >= MANY:
        message = f"{same} of {count} different prompts get the same answer from the pruned model"
        found.append(ResultWarning(code="answers_same", message=message))
    return found


def _most_alike(texts: Sequence[str]) -> int:
    """How many of `texts` are equal to the most frequent one; empty ones do not count."""
    return max((texts.count(text) for text in texts if text), default=0)


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """On `source` blocks `start` to `end` lose `loss` nats, and the chosen ones `chosen_loss`."""

    source: str
    start: int
    end: int
    loss: float
    chosen_loss: float


def disagreements(candidates: Sequence[Candidate]) -> list[Disagreement]:
    """For each source that prefers another window than the chosen one, the window that it prefers.

    Windows that were left out before they ran on all held-out tokens do not count, and neither do rows of a choice in
    steps or in groups, which are no alternatives to each other.
    """
    rows = [
        row for row in candidates if row.source_losses and not row.estimated and row.step is None and row.group is None
    ]
    chosen = next((dict(row.source_losses) for row in rows if row.chosen), None)
    if chosen is None:
        return []
    found = []
    for source, loss in chosen.items():
        best = min(rows, key=lambda row: dict(row.source_losses)[source])
        least = dict(best.source_losses)[source]
        if least < loss:
            found.append(Disagreement(source=source, start=best.start, end=best.end, loss=least, chosen_loss=loss))
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


def plan_against_actual(planned: Estimate, stages: Sequence[StageRecord], *, output: Path) -> dict[str, object]:
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


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """`method` is the one that was carried out, also where the request left it open (`auto`).

    `structure` is that of the maps that this model takes. `imported_bytes` is the resident memory before anything was
    loaded. `comparison` is `None` where nothing was measured. `is_chat`: the tokenizer has a chat template.
    `layer_angles` are `None` where they were not computed.
    `irregular` are the lists of the config that follow no step (`families.layout.irregular_lists`). `planned` is
    what the run was expected to take; `left_out` are the steps that its time budget did not allow, `unmeasured`
    are sentences on what failed in the evaluation.
    """

    spec: ResolvedSpec
    job_id: str | None
    removed: list[int]
    kept: list[int]
    method: Method
    structure: MapStructure
    candidates: Sequence[Candidate]
    captured: CaptureRecord
    comparison: Comparison | None
    times: RunTimes
    imported_bytes: int
    provenance: Provenance
    base_card: BaseCard
    is_chat: bool
    layer_angles: LayerAngles | None
    irregular: tuple[str, ...]
    planned: Estimate
    left_out: Sequence[str]
    unmeasured: Sequence[str]
    trials: Sequence[Trial] = ()
    """Of a search for the deepest cut."""


def write_report(directory: Path, outcome: RunOutcome) -> dict[str, object]:
    """Write the file into `directory`, after the card and the page that show it, and return its content."""
    comparison, angles, spec = outcome.comparison, outcome.layer_angles, outcome.spec
    answers = pair(comparison.answers_before, comparison.answers_after) if comparison else []
    texts = comparison.texts if comparison else ()
    gate = (
        judge(spec.gate, comparison).model_copy(update={"trials": tuple(outcome.trials)})
        if spec.gate and comparison
        else None
    )
    warnings = warnings_of(
        answers, texts, irregular=outcome.irregular, left_out=outcome.left_out, unmeasured=outcome.unmeasured
    )
    report: dict[str, object] = {
        "format": FORMAT,
        "job_id": outcome.job_id,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": str(spec.method.name),
        "chosen_method": str(outcome.method),
        "removed_blocks": outcome.removed,
        "kept_blocks": outcome.kept,
        "candidates": [candidate.as_dict() for candidate in outcome.candidates],
        "disagreements": [asdict(one) for one in disagreements(outcome.candidates)],
        "stages": [asdict(stage) for stage in outcome.times.stages],
        "memory": [asdict(sample) for sample in outcome.times.memory],
        "loading_seconds": outcome.times.loading_seconds,
        "plan": plan_against_actual(outcome.planned, outcome.times.stages, output=directory),
        "captured": outcome.captured.as_dict(),
        "imported_bytes": outcome.imported_bytes,
        "before": comparison.before.as_dict() if comparison else None,
        "after": comparison.after.as_dict() if comparison else None,
        "speed_changes": {name: asdict(one) for name, one in comparison.speed_changes.items()} if comparison else {},
        "texts": [one.as_dict() for one in texts],
        "tasks": [one.as_dict() for one in comparison.tasks] if comparison else [],
        "reused": list(comparison.reused) if comparison else [],
        "gate": None if gate is None else gate.model_dump(mode="json"),
        "answers": [one.as_dict() for one in answers],
        "warnings": [asdict(one) for one in warnings],
        "layers": [{"block": block, "distance": one} for block, one in enumerate(angles.blocks)] if angles else [],
        "windows": {"tokens": angles.tokens, "distances": angles.windows} if angles else None,
        "irregular": list(outcome.irregular),
        "spec": spec.model_dump(mode="json"),
        **asdict(outcome.provenance),
        "result": {path.name: file_digest(path) for path in (directory / CONFIG, *weight_files(directory))},
    }
    write_card(directory, report, base=outcome.base_card, is_chat=outcome.is_chat, structure=outcome.structure)
    write_page(directory, report)
    (directory / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return report
