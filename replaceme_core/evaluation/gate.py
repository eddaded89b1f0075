"""What a gate is judged by: the measured values by the names of its criteria."""

from replaceme_core.evaluation.compare import Comparison
from replaceme_core.gate.result import GateResult
from replaceme_core.gate.spec import GateSpec


def judge(gate: GateSpec, found: Comparison) -> GateResult:
    """Every criterion of `gate` with its value in `found`."""
    first = found.texts[0]
    return gate.judge(
        {
            "perplexity_ratio": first.ratio,
            "worst_perplexity_ratio": max(one.ratio for one in found.texts),
            "divergence": first.divergence,
            "agreement": first.agreement,
            "size_ratio": found.after.bytes / found.before.bytes,
        }
    )
