"""What a gate is judged by: the measured values by the names of its criteria."""

from collections.abc import Sequence

from replaceme_core.engine.evaluation.compare import Comparison
from replaceme_core.errors import NumericalFailure
from replaceme_core.request.gate import OF_TASKS, GateResult, GateSpec


def judge(gate: GateSpec, found: Comparison) -> GateResult:
    """Every criterion of `gate` with its value in `found`. Raises `NumericalFailure` where nothing could be kept."""
    values = measured_values(found)
    for name in gate.criteria:
        if name not in values:
            tasks = name.removeprefix(OF_TASKS) if name.startswith(OF_TASKS) else "the tasks"
            raise NumericalFailure(f"the gate cannot be judged: the original model has no accuracy above 0 in {tasks}")
    return gate.judge(values)


def measured_values(found: Comparison) -> dict[str, float]:
    """All that a gate can ask for, by the names of its criteria; without tasks in which there was nothing to keep."""
    first, names = found.texts[0], [one.before.name for one in found.tasks]
    kept = {"accuracy_kept": _kept(found, names), **{f"{OF_TASKS}{name}": _kept(found, (name,)) for name in names}}
    return {
        **{name: share for name, share in kept.items() if share is not None},
        "perplexity_ratio": first.ratio,
        "worst_perplexity_ratio": max(one.ratio for one in found.texts),
        "divergence": first.divergence,
        "agreement": first.agreement,
        "size_ratio": found.after.bytes / found.before.bytes,
    }


def _kept(found: Comparison, names: Sequence[str]) -> float | None:
    """The share of the summed accuracy over the tasks `names` that is kept; those without an accuracy do not count."""
    pairs = [one for one in found.tasks if one.before.name in names]
    before = sum(one.before.accuracy or 0.0 for one in pairs)
    return sum(one.after.accuracy or 0.0 for one in pairs) / before if before else None
