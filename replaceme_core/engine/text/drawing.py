"""Draw the sequences of one text: whole documents on either side, and one sequence from each equal part of a side.

Text beside a fitted sequence is like it: often the same document. So whole documents go to one side, in blocks, and
each kind has blocks all over the text (docs/explanation/text-and-memory.md#text).
"""

import itertools
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch

from replaceme_core.errors import CalibrationTooSmall
from replaceme_core.request.calibration import held_out_samples
from replaceme_core.request.resolve import ResolvedCalibration
from replaceme_core.wording import counted

READ_FOR_EACH = 8
"""Sequences read for each one that is used: samples are spread over the text without reading a huge data set
whole."""
RESERVED = 16
"""Sequences that are kept for the evaluation, whether there is one or not: it must not change what calibrates."""
MOST_PERIODS = 4
"""Equal periods of the text, each with a region for the fit, one that is held out, and one that measures. One region
of each kind would judge by one or two articles."""
OTHER_TEXTS = 4
"""A text after the first one measures a quarter as many sequences as the first."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images as a model reads them: `pixels` (images, channels, height, width), each with label and caption if any."""

    pixels: torch.Tensor
    labels: tuple[str | None, ...]
    captions: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """Token ids, (sequences, length) each: `fit` and `held_out` for calibration, `measure` for the evaluation.

    `sources` are the names of what they come from; `fit_sources`, `held_out_sources` and `measure_sources` are indices
    into these, int64 (sequences,). `measure` begins with the sequences of the first text. `held_out_scored` (held-out
    sequences, length) tells which tokens a candidate must predict; `None`: all but the first of each sequence.

    Of a model of images, a sequence is the number of one of `pictures`, once for each position that it takes.
    """

    fit: torch.Tensor
    held_out: torch.Tensor
    measure: torch.Tensor
    sources: tuple[str, ...]
    fit_sources: torch.Tensor
    held_out_sources: torch.Tensor
    measure_sources: torch.Tensor
    held_out_scored: torch.Tensor | None = None
    pictures: Pictures | None = None

    @property
    def pixels(self) -> torch.Tensor | None:
        return None if self.pictures is None else self.pictures.pixels

    @property
    def calibrating(self) -> dict[str, torch.Tensor]:
        """All that decides which streams a model has and by which of them candidates are judged, by name."""
        names = ("fit", "held_out", "held_out_sources", "held_out_scored", "pixels")
        return {name: values for name in names if (values := getattr(self, name)) is not None}

    def __post_init__(self) -> None:
        for tokens, sources in (
            (self.fit, self.fit_sources),
            (self.held_out, self.held_out_sources),
            (self.measure, self.measure_sources),
        ):
            assert sources.shape == tokens.shape[:1], "each sequence has a source"

    @property
    def measured_texts(self) -> dict[str, torch.Tensor]:
        """The sequences that measure the result, (sequences, length), by text; the first one of the mix comes first."""
        sources = self.measure_sources.unique().tolist()
        return {self.sources[source]: self.measure[self.measure_sources == source] for source in sources}


class Drawn(NamedTuple):
    """The token ids of one text, as in `TokenSet`."""

    fit: torch.Tensor
    held_out: torch.Tensor
    measure: torch.Tensor


class SequenceCounts(NamedTuple):
    """How many sequences of one source are fitted on and held out, and how many measure the result at most."""

    fit: int
    held_out: int
    measure: int


def sequence_counts(calibration: ResolvedCalibration, *, measure: int) -> tuple[SequenceCounts, ...]:
    """Divides the samples of `calibration` by the shares of its mix; of the first text `measure` sequences measure.

    A text has at least one fitted sequence and one that is held out. The model's own text and the one of `judges` have
    held-out sequences beside those of the samples instead.
    """
    mix, beside, held_out = calibration.mix, calibration.judges, held_out_samples(calibration.samples)
    least = [0 if source.self_generated or other else 1 for source, other in zip(mix, beside, strict=True)]
    fits = divide(calibration.samples - held_out, [source.share for source in mix], least=least)
    shares = [0.0 if other else source.share for source, other in zip(mix, beside, strict=True)]
    held_outs = divide(held_out, shares, least=least)
    held_outs = [calibration.judging if other else count for count, other in zip(held_outs, beside, strict=True)]
    texts = [number for number, source in enumerate(mix) if not source.self_generated]
    others = max(1, measure // OTHER_TEXTS) if measure else 0
    measures = [0 if number not in texts else measure if number == texts[0] else others for number in range(len(mix))]
    return tuple(map(SequenceCounts, fits, held_outs, measures))


def alternating(sources: torch.Tensor) -> torch.Tensor:
    """An order in which every beginning has each of `sources` (sequences,) about by its share; int64 (sequences,).

    The sequences of one source keep their order.
    """
    places = torch.zeros(len(sources), dtype=torch.float64)
    for source in sources.unique():
        of_it = sources == source
        size = int(of_it.sum())
        places[of_it] = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    by_source = torch.argsort(sources, stable=True)
    return by_source[torch.argsort(places[by_source], stable=True)]


def with_source(
    tokens: TokenSet,
    name: str,
    *,
    fit: torch.Tensor,
    held_out: torch.Tensor,
    seed: int,
    scored: torch.Tensor | None = None,
) -> TokenSet:
    """`tokens` with the sequences of the source `name`: fitted ones in random order, held-out ones alternating.

    It may be one of those of `tokens`, or another one. `scored` as `TokenSet.held_out_scored`, if that is known.
    """
    sources = tokens.sources if name in tokens.sources else (*tokens.sources, name)
    number = sources.index(name)
    fit_sources = torch.cat([tokens.fit_sources, torch.full((len(fit),), number)])
    held_out_sources = torch.cat([tokens.held_out_sources, torch.full((len(held_out),), number)])
    order = torch.randperm(len(fit_sources), generator=torch.Generator().manual_seed(seed))
    held_out_order = alternating(held_out_sources)
    known = tokens.held_out_scored
    return replace(
        tokens,
        fit=torch.cat([tokens.fit, fit])[order],
        held_out=torch.cat([tokens.held_out, held_out])[held_out_order],
        sources=sources,
        fit_sources=fit_sources[order],
        held_out_sources=held_out_sources[held_out_order],
        held_out_scored=None if known is None or scored is None else torch.cat([known, scored])[held_out_order],
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


KINDS = ("fit", "held_out", "measure")


@dataclass(frozen=True, kw_only=True)
class Region:
    """Tokens from `start` to before `end`, of one of `KINDS`."""

    kind: str
    start: int
    end: int


def regions(tokens: int, borders: Sequence[int], *, needs: Sequence[int], body: int) -> list[Region]:
    """The regions of a text of `tokens` tokens, in order, without gaps; an empty kind has none.

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


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Token ids of a document, or of a paragraph. Where pieces are titles, a document goes from one to the next."""

    ids: Sequence[int]
    is_title: bool = False


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to draw: `count` sequences of `length` tokens, each with `prefix` in front.

    `grouped`: pieces are paragraphs, and those of one document are not known. For errors, `called` is put after "the
    calibration text", and `samples` is what the request asks for, of all sources together.
    """

    count: SequenceCounts
    length: int
    prefix: Sequence[int] = ()
    grouped: bool = False
    called: str = ""
    samples: int

    @property
    def body(self) -> int:
        """Tokens of the text in each sequence."""
        return self.length - len(self.prefix)


def draw(pieces: Iterable[Piece], wanted: Wanted, *, seed: int) -> Drawn:
    """The sequences of the fit, held out, and to measure: from different documents, where the text allows it.

    The fit and held-out sequences do not depend on how many measure. Of these at least one must exist if any are
    wanted; there may be fewer than wanted. Raises `CalibrationTooSmall` with the number of tokens that are needed.
    """
    count, body = wanted.count, wanted.body
    samples = count.fit + count.held_out
    reserved = min(RESERVED, max(1, samples // 4))
    rest = iter(pieces)
    pool = _read(rest, limit=(READ_FOR_EACH * samples + reserved) * body, least=body if wanted.grouped else 0)
    available = len(pool.tokens) // body
    if available < samples + min(count.measure, 1):
        raise _too_small(wanted, tokens=len(pool.tokens), available=available)
    needs = (count.fit, count.held_out, min(reserved, available - samples))
    of_kind: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    for region in regions(len(pool.tokens), pool.borders, needs=needs, body=body):
        of_kind[region.kind].append(pool.tokens[region.start : region.end])
    missing = count.measure * body - sum(map(len, of_kind["measure"]))
    more = itertools.chain(pool.cut_off, itertools.chain.from_iterable(piece.ids for piece in rest))
    of_kind["measure"].append(_tensor(array("q", itertools.islice(more, max(0, missing)))))  # the last region goes on
    fit, held_out, measure = (_fill(of_kind[kind], wanted) for kind in KINDS)
    generator = torch.Generator().manual_seed(seed)
    chosen = [_spread(rows, number, generator) for rows, number in ((fit, count.fit), (held_out, count.held_out))]
    fit, held_out = (_shuffled(rows, generator) for rows in chosen)
    measure = _shuffled(_spread(measure, min(count.measure, len(measure)), generator), generator)
    return Drawn(fit, held_out, measure)


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """The beginning of a text: `tokens` (int64), where documents begin, and what was `cut_off` of the last piece."""

    tokens: torch.Tensor
    borders: Sequence[int]
    cut_off: Sequence[int]


def _read(pieces: Iterator[Piece], *, limit: int, least: int) -> _Pool:
    """The first `limit` tokens. With titles, documents begin there; else at each piece after `least` tokens or more."""
    tokens, starts, titles = array("q"), list[int](), list[int]()
    for piece in pieces:
        if piece.is_title:
            titles.append(len(tokens))
        elif not starts or len(tokens) - starts[-1] >= least:
            starts.append(len(tokens))
        tokens.extend(piece.ids)
        if len(tokens) >= limit:
            break
    cut_off = tokens[limit:]
    del tokens[limit:]
    return _Pool(tokens=_tensor(tokens), borders=titles or starts, cut_off=cut_off)


def _tensor(tokens: "array[int]") -> torch.Tensor:
    return torch.frombuffer(tokens, dtype=torch.long).clone() if tokens else torch.empty(0, dtype=torch.long)


def _fill(parts: Sequence[torch.Tensor], wanted: Wanted) -> torch.Tensor:
    """Full sequences (sequences, length); tokens that do not fill the last one are dropped."""
    tokens = torch.cat([*parts, torch.empty(0, dtype=torch.long)])
    rows = tokens[: len(tokens) // wanted.body * wanted.body].reshape(-1, wanted.body)
    prefix = torch.tensor(list(wanted.prefix), dtype=torch.long).expand(len(rows), -1)
    return torch.cat([prefix, rows], dim=1)


def _spread(rows: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """One of `rows` out of each of `count` equal parts of them."""
    edges = [part * len(rows) // count for part in range(count + 1)] if count else []
    chosen = [start + int(torch.randint(end - start, (), generator=generator)) for start, end in pairwise(edges)]
    return rows[torch.tensor(chosen, dtype=torch.long)]


def _shuffled(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return rows[torch.randperm(len(rows), generator=generator)]


def _too_small(wanted: Wanted, *, tokens: int, available: int) -> CalibrationTooSmall:
    length, needed = wanted.length, wanted.count.fit + wanted.count.held_out
    spare = min(wanted.count.measure, 1)
    also = f" and {length} more to evaluate on" if spare else ""
    possible = (available - spare) * wanted.samples // max(1, needed)
    advice = f", or ask for at most {possible} samples" if possible >= 2 else ""
    return CalibrationTooSmall(
        f"the calibration text{wanted.called} has {counted(tokens, 'tokens')}, which fill "
        f"{counted(available, 'sequences')} of {length}; "
        f"{needed} x {length} = {needed * length} are needed{also}: give more text{advice}",
        field="calibration.samples",
        value=wanted.samples,
    )
