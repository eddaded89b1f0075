"""How many sequences each source of a mix gives."""

from collections.abc import Sequence
from dataclasses import dataclass

from replaceme_core.request.calibration import held_out_samples
from replaceme_core.request.resolve import ResolvedCalibration

OTHER_TEXTS = 4
"""A text after the first one measures one sequence for each so many of the first."""


@dataclass(frozen=True, kw_only=True)
class SequenceCounts:
    """How many sequences of one source are fitted on and held out, and how many measure the result at most."""

    fit: int
    held_out: int
    measure: int


def sequence_counts(calibration: ResolvedCalibration, *, measure: int) -> tuple[SequenceCounts, ...]:
    """Divides the samples of `calibration` by the shares of its mix; of the first text `measure` sequences measure.

    The shares are about the same among fit and held-out sequences. A text has at least one of each. Those of `judges`
    have held-out sequences beside those of the samples instead, and the model's own text may have further ones.
    """
    mix, held_out = calibration.mix, held_out_samples(calibration.samples)
    judges = calibration.judges
    least = [0 if source.self_generated or judge else 1 for source, judge in zip(mix, judges, strict=True)]
    fits = divide(calibration.samples - held_out, [source.share for source in mix], least=least)
    shares = [0.0 if judge else source.share for source, judge in zip(mix, judges, strict=True)]
    held_outs = divide(held_out, shares, least=least)
    held_outs = [
        calibration.judging if judge else count + calibration.own_judging * source.self_generated
        for source, count, judge in zip(mix, held_outs, judges, strict=True)
    ]
    texts = [number for number, source in enumerate(mix) if not source.self_generated]
    others = max(1, measure // OTHER_TEXTS) if measure else 0
    measures = [0 if number not in texts else measure if number == texts[0] else others for number in range(len(mix))]
    return tuple(
        SequenceCounts(fit=fit, held_out=held, measure=measured)
        for fit, held, measured in zip(fits, held_outs, measures, strict=True)
    )


def divide(total: int, shares: Sequence[float], *, least: Sequence[int]) -> list[int]:
    """`total` in parts by `shares`, rounded by the largest remainders; each part is no smaller than its `least`.

    >>> divide(8, [0.5, 0.4, 0.1], least=[1, 1, 1])
    [4, 3, 1]
    """
    assert sum(least) <= total, "the specification was checked for this"
    exact = [total * share / sum(shares) for share in shares]
    parts = [int(part) for part in exact]
    largest = sorted(range(len(parts)), key=lambda number: (parts[number] - exact[number], number))
    for number in largest[: total - sum(parts)]:
        parts[number] += 1
    for number, bound in enumerate(least):
        while parts[number] < bound:
            giver = max(range(len(parts)), key=lambda other: (parts[other] - least[other], -other))
            parts[giver] -= 1
            parts[number] += 1
    return parts
