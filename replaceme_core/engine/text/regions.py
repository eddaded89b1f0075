"""Divide a text into regions for the fit, for the held-out tokens and for the evaluation.

Text beside a fitted sequence is like it: often the same document. So whole documents go to one side, in blocks, and
each kind has blocks all over the text (docs/explanation/how-the-default-works.md#text).
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

MOST_PERIODS = 4
"""Every kind has a region in each of so many equal periods of the text."""
KINDS = ("fit", "held_out", "measure")


@dataclass(frozen=True, kw_only=True)
class Region:
    """Tokens from `start` to before `end`, of one of `KINDS`."""

    kind: str
    start: int
    end: int


def regions(tokens: int, borders: Sequence[int], *, needs: Sequence[int], body: int) -> list[Region]:
    """The regions of a text of so many tokens, in order, without gaps; an empty kind has none.

    `borders` are where documents begin, in order. `needs` are the sequences of `body` tokens of each of `KINDS`; the
    text must have enough for all. Regions are in proportion to the needs. An edge is at the nearest border of documents
    if one is within half of the smallest region and leaves both sides what they need; else a document is cut.
    """
    sequences = sum(needs)
    assert sequences * body <= tokens, "the text was checked for this"
    if sequences == 0:
        return []
    totals = [tokens * need // sequences for need in needs]
    totals[next(kind for kind, need in enumerate(needs) if need)] += tokens - sum(totals)
    periods = max(1, min(MOST_PERIODS, *needs[:2]))  # both that calibrate are in each
    ends, kinds = [0], list[int]()
    for period in range(periods):
        for kind, (total, need) in enumerate(zip(totals, needs, strict=True)):
            used = min(periods, need)  # a sequence is not put together from more periods than there are sequences
            before, after = (count * used // periods for count in (period, period + 1))
            if after > before:
                ends.append(ends[-1] + total * after // used - total * before // used)
                kinds.append(kind)
    spare = [total - need * body for total, need in zip(totals, needs, strict=True)]
    smallest = min(end - start for start, end in pairwise(ends))
    for number in range(1, len(ends) - 1):
        left, right = kinds[number - 1], kinds[number]
        for border in _nearest(borders, ends[number]):
            gain = border - ends[number]
            if 2 * abs(gain) < smallest and spare[left] + gain >= 0 and spare[right] - gain >= 0:
                spare[left], spare[right], ends[number] = spare[left] + gain, spare[right] - gain, border
                break
    return [
        Region(kind=KINDS[kind], start=start, end=end) for kind, start, end in zip(kinds, ends, ends[1:], strict=False)
    ]


def _nearest(borders: Sequence[int], place: int) -> list[int]:
    """The border before `place` and the one at or after it, the nearer one first."""
    index = bisect_left(borders, place)
    return sorted(borders[max(0, index - 1) : index + 1], key=lambda border: abs(border - place))
