"""Draw the sequences of one text: whole documents on either side, and one sequence from each equal part of a side."""

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from replaceme_core.engine.text.counts import SequenceCounts
from replaceme_core.engine.text.packing import TokenSet
from replaceme_core.engine.text.regions import KINDS, regions
from replaceme_core.errors import CalibrationTooSmall
from replaceme_core.wording import counted

POOL_FACTOR = 8
"""Sequences read for each one that is used: samples are spread over the text without reading a huge data set whole."""
RESERVED = 16
"""Sequences that are kept for the evaluation, whether there is one or not: it must not change what calibrates."""


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


def draw(pieces: Iterable[Piece], wanted: Wanted, *, seed: int) -> TokenSet:
    """The sequences of the fit, held out, and to measure: from different documents, where the text allows it.

    The fit and held-out sequences do not depend on how many measure. Of these at least one must exist if any are
    wanted; there may be fewer than wanted. Raises `CalibrationTooSmall` with the number of tokens that are needed.
    """
    count, body = wanted.count, wanted.body
    samples = count.fit + count.held_out
    reserved = min(RESERVED, max(1, samples // 4))
    rest = iter(pieces)
    pool = _read(rest, limit=(POOL_FACTOR * samples + reserved) * body, least=body if wanted.grouped else None)
    available = len(pool.tokens) // body
    if available < samples + min(count.measure, 1):
        raise _too_small(wanted, tokens=len(pool.tokens), available=available)
    needs = (count.fit, count.held_out, min(reserved, available - samples))
    of_kind: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    for region in regions(len(pool.tokens), pool.borders, needs=needs, body=body):
        of_kind[region.kind].append(pool.tokens[region.start : region.end])
    missing = count.measure * body - sum(map(len, of_kind["measure"]))
    of_kind["measure"].append(_read_more(pool.cut_off, rest, limit=missing))  # the last region goes on
    fit, held_out, measure = (_fill(of_kind[kind], wanted) for kind in KINDS)
    generator = torch.Generator().manual_seed(seed)
    chosen = [_spread(rows, number, generator) for rows, number in ((fit, count.fit), (held_out, count.held_out))]
    fit, held_out = (_shuffled(rows, generator) for rows in chosen)
    measure = _shuffled(_spread(measure, min(count.measure, len(measure)), generator), generator)
    return TokenSet.of_one_source(fit=fit, held_out=held_out, measure=measure)


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """The beginning of a text: `tokens` (int64), where documents begin, and what was `cut_off` of the last piece."""

    tokens: torch.Tensor
    borders: Sequence[int]
    cut_off: Sequence[int]


def _read(pieces: Iterator[Piece], *, limit: int, least: int | None) -> _Pool:
    """The first `limit` tokens. With titles, documents begin there; else at each piece, or after `least` tokens."""
    tokens, starts, titles = array("q"), list[int](), list[int]()
    for piece in pieces:
        (titles if piece.is_title else starts).append(len(tokens))
        tokens.extend(piece.ids)
        if len(tokens) >= limit:
            break
    cut_off = tokens[limit:]
    del tokens[limit:]
    if titles:
        starts = titles
    elif least is not None:
        starts = _grouped(starts, least)
    return _Pool(tokens=_tensor(tokens), borders=starts, cut_off=cut_off)


def _grouped(starts: Sequence[int], least: int) -> list[int]:
    found: list[int] = []
    for start in starts:
        if not found or start - found[-1] >= least:
            found.append(start)
    return found


def _read_more(first: Sequence[int], pieces: Iterator[Piece], *, limit: int) -> torch.Tensor:
    tokens = array("q", first)
    while len(tokens) < limit:
        piece = next(pieces, None)
        if piece is None:
            break
        tokens.extend(piece.ids)
    return _tensor(tokens[: max(0, limit)])


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
    chosen = [
        start + int(torch.randint(end - start, (), generator=generator)) for start, end in itertools.pairwise(edges)
    ]
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
