"""What a run reports as metrics of its job, besides what the methods report themselves."""

from collections.abc import Sequence

from replaceme_core.engine.activations.capture import CaptureRecord
from replaceme_core.engine.evaluation.compare import Answer, Comparison, distinct_share, judge
from replaceme_core.engine.evaluation.measure import Measurement
from replaceme_core.engine.evaluation.tasks import TaskPair
from replaceme_core.engine.methods.task import Candidate
from replaceme_core.report.reading import Report
from replaceme_core.report.view import QUANTITIES
from replaceme_core.request.gate import GateResult, GateSpec, Trial, unit_of
from replaceme_core.runner.messages import Progress
from replaceme_core.wording import counted


def report_capture(progress: Progress, record: CaptureRecord) -> None:
    """What the capture pass took."""
    for name, value, unit in record.metrics():
        progress.metric(name, value, unit)


def report_candidates(progress: Progress, candidates: Sequence[Candidate]) -> None:
    """Every measured quantity of every candidate."""
    for row in candidates:
        name, anchor = str(row.cut), row.cut.anchor
        if row.step is not None:
            name += f" in step {row.step}"
        if row.group is not None:
            name += f" in group {row.group}"
        measured = (
            ("distance", row.distance, "half turns"),
            ("influence", row.influence, "ratio"),
            ("residual", row.residual, "ratio"),
            ("tokens", row.tokens, "tokens"),
            ("held_out_loss", row.held_out_loss, "nats"),
        )
        for quantity, value, unit in measured:
            if value is not None:
                progress.metric(quantity, value, unit, block=anchor, candidate=name)
        if row.estimated:
            progress.metric("estimated", 1.0, "flag", block=anchor, candidate=name)
        if row.chosen:
            progress.metric("chosen", 1.0, "flag", block=anchor, candidate=name)


def report_comparison(progress: Progress, found: Comparison, *, gate: GateSpec | None) -> None:
    """Both models on the first text and on every text apart, how they answer, and what that is worth by `gate`."""
    sides = (("before", found.before, found.answers_before), ("after", found.after, found.answers_after))
    for name, measured, answers in sides:
        report_measurement(progress, name, measured)
        if answers:
            report_answers(progress, name, answers)
    report_tasks(progress, found.tasks)
    for text in found.texts:
        progress.metric("before.text_perplexity", text.before, "ratio", candidate=text.name)
        progress.metric("after.text_perplexity", text.after, "ratio", candidate=text.name)
        if text.ratio_low is not None and text.ratio_high is not None:
            progress.metric("text_ratio_low", text.ratio_low, "ratio", candidate=text.name)
            progress.metric("text_ratio_high", text.ratio_high, "ratio", candidate=text.name)
        progress.metric("text_divergence", text.divergence, "nats", candidate=text.name)
        progress.metric("text_agreement", text.agreement, "ratio", candidate=text.name)
    if gate is not None:
        report_gate(progress, judge(gate, found))


def report_tasks(progress: Progress, tasks: Sequence[TaskPair]) -> None:
    """The accuracies of each task, as the candidate, and the share that is kept."""
    for pair in tasks:
        name, kept = pair.before.name, pair.after.kept_of(pair.before)
        for side, result in (("before", pair.before), ("after", pair.after)):
            if result.accuracy is not None:
                progress.metric(f"{side}.task_accuracy", result.accuracy, "ratio", candidate=name)
        if kept["kept"] is not None:
            progress.metric("task_kept", kept["kept"], "ratio", candidate=name)


def report_gate(progress: Progress, gate: GateResult) -> None:
    """Each criterion, as the candidate: its value, its limits, and 1 if it is met, else 0."""
    for one in gate.criteria:
        progress.metric("gate_value", one.value, one.unit, candidate=one.name)
        if one.min is not None:
            progress.metric("gate_min", one.min, one.unit, candidate=one.name)
        if one.max is not None:
            progress.metric("gate_max", one.max, one.unit, candidate=one.name)
        progress.metric("gate_passed", float(one.passed), "flag", candidate=one.name)


def report_trial(progress: Progress, trial: Trial) -> None:
    """A trial of a search for the deepest cut: the verdict, the time, each measured value and each criterion."""
    name = counted(trial.blocks, "blocks")
    progress.metric("trial_passed", float(trial.passed), "flag", candidate=name)
    progress.metric("trial_seconds", trial.seconds, "s", candidate=name)
    for quantity, value in trial.measured.items():
        progress.metric("trial_value", value, unit_of(quantity), candidate=f"{name}: {quantity}")
    for one in trial.criteria:
        progress.metric("trial_met", float(one.passed), "flag", candidate=f"{name}: {one.name}")


def report_measurement(progress: Progress, name: str, measured: Measurement) -> None:
    """`name` is `before` or `after`."""
    report = Report(measured.as_dict())
    for one in QUANTITIES:
        value = report.number(*one.path)
        if value is not None:
            progress.metric(f"{name}.{one.name}", value, one.unit)
    if measured.speed is not None:
        for kind, rate in (("prefill", measured.speed.prefill), ("decode", measured.speed.decode)):
            progress.metric(f"{name}.{kind}_spread", rate.spread, "tokens/s")


def report_answers(progress: Progress, name: str, answers: Sequence[Answer]) -> None:
    """How much the answers repeat themselves; `name` is `before` or `after`."""
    progress.metric(f"{name}.looping_answers", sum(one.loops for one in answers), "answers")
    share = distinct_share(answers)
    if share is not None:
        progress.metric(f"{name}.distinct_4grams", share, "ratio")
