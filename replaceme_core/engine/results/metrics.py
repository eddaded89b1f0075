"""What a run reports as metrics of its job, besides what the methods report themselves."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from replaceme_core.engine.evaluation.compare import Answer, Comparison, distinct_share, judge
from replaceme_core.engine.evaluation.measure import Measured
from replaceme_core.engine.methods.task import Candidate
from replaceme_core.report.reading import Report
from replaceme_core.report.view import QUANTITIES
from replaceme_core.request.gate import GateSpec, Trial, unit_of
from replaceme_core.runner.messages import Progress
from replaceme_core.wording import counted

Values = Iterable[tuple[str, float | None, str]]
"""Names, values and units; a value that is `None` is not known."""


def report_values(
    progress: Progress, values: Values, *, block: int | None = None, candidate: str | None = None
) -> None:
    for name, value, unit in values:
        if value is not None:
            progress.metric(name, value, unit, block=block, candidate=candidate)


def report_candidates(progress: Progress, candidates: Sequence[Candidate], *, unit: str) -> None:
    """Every measured quantity of every candidate, their losses in this unit."""
    for row in candidates:
        name = str(row.cut)
        if row.step is not None:
            name += f" in step {row.step}"
        if row.group is not None:
            name += f" in group {row.group}"
        values: Values = (
            ("distance", row.distance, "half turns"),
            ("influence", row.influence, "ratio"),
            ("residual", row.residual, "ratio"),
            ("tokens", row.tokens, "tokens"),
            ("held_out_loss", row.held_out_loss, unit),
            ("chosen", 1.0 if row.chosen else None, "flag"),
        )
        report_values(progress, values, block=row.cut.anchor, candidate=name)


def report_comparison(progress: Progress, found: Comparison, *, gate: GateSpec | None) -> None:
    """Both models on the first text and on every text apart, how they answer, and what that is worth by `gate`."""
    _report_model(progress, "before", found.before, found.answers_before)
    _report_model(progress, "after", found.after, found.answers_after)
    for pair in found.tasks:
        values: Values = (
            ("before.task_accuracy", pair.before.accuracy, "ratio"),
            ("after.task_accuracy", pair.after.accuracy, "ratio"),
            ("task_kept", pair.after.kept_of(pair.before)["kept"], "ratio"),
        )
        report_values(progress, values, candidate=pair.before.name)
    for text in found.texts:
        values = (
            ("before.text_perplexity", text.before, "ratio"),
            ("after.text_perplexity", text.after, "ratio"),
            ("text_ratio_low", text.ratio_low, "ratio"),
            ("text_ratio_high", text.ratio_high, "ratio"),
            ("text_divergence", text.divergence, "nats"),
            ("text_agreement", text.agreement, "ratio"),
        )
        report_values(progress, values, candidate=text.name)
    for one in found.experts:
        report_values(progress, (("experts_changed", one.changed, "ratio"),), block=one.block)
    for images in found.images:
        values = (
            ("embedding_distance", images.distance, "1 - cosine"),
            ("embedding_distance_low", images.distance_low, "1 - cosine"),
            ("embedding_distance_high", images.distance_high, "1 - cosine"),
            ("embedding_agreement", images.agreement, "ratio"),
        )
        report_values(progress, values, candidate=images.name)
    for criterion in judge(gate, found).criteria if gate is not None else ():
        unit = unit_of(criterion.name)
        values = (
            ("gate_value", criterion.value, unit),
            ("gate_min", criterion.min, unit),
            ("gate_max", criterion.max, unit),
            ("gate_passed", float(criterion.passed), "flag"),
        )
        report_values(progress, values, candidate=criterion.name)


def _report_model(progress: Progress, side: str, measured: Measured, answers: Sequence[Answer]) -> None:
    """`side` is `before` or `after`. Of the answers: how much they repeat themselves."""
    report = Report(asdict(measured))
    values = [(one.name, report.number(*one.path), one.unit) for one in QUANTITIES]
    for name, unit in (("prefill", "tokens/s"), ("decode", "tokens/s"), ("images", "images/s")):
        if (rate := getattr(measured.speed, name, None)) is not None:
            values.append((f"{name}_spread", rate.spread, unit))
    if answers:
        values.append(("looping_answers", sum(one.loops for one in answers), "answers"))
        values.append(("distinct_4grams", distinct_share(answers), "ratio"))
    report_values(progress, [(f"{side}.{name}", value, unit) for name, value, unit in values])


def report_trial(progress: Progress, trial: Trial) -> None:
    """A trial of a search for the deepest cut: the verdict, the time, each measured value and each criterion."""
    name = counted(trial.blocks, "blocks")
    verdict: Values = (("trial_passed", float(trial.passed), "flag"), ("trial_seconds", trial.seconds, "s"))
    report_values(progress, verdict, candidate=name)
    for quantity, value in trial.measured.items():
        progress.metric("trial_value", value, unit_of(quantity), candidate=f"{name}: {quantity}")
    for one in trial.criteria:
        progress.metric("trial_met", float(one.passed), "flag", candidate=f"{name}: {one.name}")
