"""What a gate is judged by: the measured values by the names of its criteria."""

from collections.abc import Sequence

from replaceme_core.errors import NumericalFailure
from replaceme_core.evaluation.compare import Comparison
from replaceme_core.gate.result import GateResult
from replaceme_core.gate.spec import OF_TASKS, GateSpec


def judge(gate: GateSpec, found: Comparison) -> GateResult:
    """Every criterion of `gate` with its value in `found`. Raises `NumericalFailure` where nothing could be kept."""
    first = found.texts[0]
    kept = {f"{OF_TASKS}{name}": _kept(found, (name,)) for name in gate.tasks or ()}
    if gate.accuracy_kept is not None:
        kept["accuracy_kept"] = _kept(found, [one.before.name for one in found.tasks])
    return gate.judge(
        {
            **kept,
            "perplexity_ratio": first.ratio,
            "worst_perplexity_ratio": max(one.ratio for one in found.texts),
            "divergence": first.divergence,
            "agreement": first.agreement,
            "size_ratio": found.after.bytes / found.before.bytes,
        }
    )


def _kept(found: Comparison, names: Sequence[str]) -> float:
    """The share of the summed accuracy over the tasks `names` that is kept; those without an accuracy do not count."""
    pairs = [one for one in found.tasks if one.before.name in names]
    before = sum(one.before.accuracy or 0.0 for one in pairs)
    after = sum(one.after.accuracy or 0.0 for one in pairs)
    if not before:
        raise NumericalFailure(
            f"the gate cannot be judged: the original model has no accuracy above 0 in {', '.join(names)}"
        )
    return after / before
