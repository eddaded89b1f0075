"""How many sequences each text gives, and which: whole documents on either side."""

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaceme_core.engine.text.drawing import (
    READ_FOR_EACH,
    RESERVED,
    Piece,
    SequenceCounts,
    Wanted,
    draw,
    regions,
    sequence_counts,
)
from replaceme_core.errors import CalibrationTooSmall
from replaceme_core.request.calibration import held_out_samples
from replaceme_core.request.resolve import ResolvedCalibration


def calibration(**fields: object) -> ResolvedCalibration:
    return ResolvedCalibration.model_validate({"samples": 64, "max_length": 512, **fields})


JUDGED = {"dataset": "org/a", "judged_on": "builtin:code"}
MIXED = {"sources": [{"self_generated": True}, {"dataset": "org/a"}, {"dataset": "org/b"}]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dataset": "org/a", "self_generated": 0.0}, [(56, 8, 16)]),
        ({"dataset": "org/a", "self_generated": 1.0}, [(0, 4, 16), (56, 8, 0)]),
        ({"dataset": "org/a", "self_generated": 0.25, "samples": 9}, [(6, 1, 16), (2, 2, 0)]),
        # a text that only judges has sequences beside the samples, half as many as are held out of these
        ({**JUDGED, "self_generated": 0.0}, [(56, 8, 16), (0, 4, 4)]),
        ({**JUDGED, "self_generated": 0.0, "samples": 1024, "max_length": 1024}, [(896, 128, 16), (0, 11, 4)]),
        ({**JUDGED, "self_generated": 0.0, "max_length": 6000}, [(56, 8, 16), (0, 2, 4)]),
        # own text judges with as many, beside the samples
        ({**JUDGED, "self_generated": 0.125}, [(49, 8, 16), (7, 4, 0), (0, 4, 4)]),
        ({**JUDGED, "self_generated": 0.5}, [(28, 8, 16), (28, 4, 0), (0, 4, 4)]),
        (MIXED, [(19, 4, 0), (19, 4, 16), (18, 4, 4)]),
    ],
)
def test_how_many_sequences_each_source_has(fields: dict[str, object], expected: list[tuple[int, int, int]]) -> None:
    found = calibration(**fields)
    counts = sequence_counts(found, measure=16)
    assert [(one.fit, one.held_out, one.measure) for one in counts] == expected
    assert sum(one.fit + one.held_out for one in counts) == found.samples + found.beside_samples
    own = sum(one.fit + one.held_out for source, one in zip(found.mix, counts, strict=True) if source.self_generated)
    assert found.generating == pytest.approx(own, abs=1)
    assert [one.measure for one in sequence_counts(found, measure=0)] == [0] * len(expected)


@settings(max_examples=20, deadline=None)
@given(
    shares=st.lists(st.floats(0.001, 1), min_size=1, max_size=8),
    more=st.integers(0, 3000),
    generated=st.booleans(),
)
def test_counts_are_complete_and_follow_the_shares(shares: list[float], more: int, generated: bool) -> None:
    total = sum(shares)
    sources: list[dict[str, object]] = [
        {"dataset": f"org/{number}", "share": share / total} for number, share in enumerate(shares)
    ]
    if generated and len(sources) > 1:
        sources[-1] = {"self_generated": True, "share": shares[-1] / total}
    samples = 8 * len(sources) + more
    resolved = calibration(samples=samples, sources=sources)
    found = sequence_counts(resolved, measure=16)
    held_out = held_out_samples(samples)
    texts = sum(share for source, share in zip(sources, shares, strict=True) if "self_generated" not in source)
    for source, share, one in zip(sources, shares, found, strict=True):
        assert abs(one.fit - (samples - held_out) * share / total) < len(sources)
        if "self_generated" in source:
            assert one.held_out == resolved.judging
        else:
            assert one.fit >= 1
            assert one.held_out >= 1
            assert abs(one.held_out - held_out * share / texts) < len(sources)
    assert sum(one.fit for one in found) == samples - held_out
    assert sum(one.held_out for one in found) == held_out + resolved.judging * ("self_generated" in sources[-1])


LENGTH = 8


def wanted(fit: int, held_out: int, measure: int = 0, *, length: int = LENGTH, **fields: object) -> Wanted:
    count = SequenceCounts(fit=fit, held_out=held_out, measure=measure)
    return Wanted(count=count, length=length, samples=fit + held_out, **fields)  # type: ignore[arg-type]


def numbered(lengths: Iterable[int]) -> Iterator[Piece]:
    """Documents of these lengths; every token is the number of its document."""
    for number, length in enumerate(lengths):
        yield Piece(ids=[number] * length)


def counted(tokens: int, *, document: int = 20) -> Iterator[Piece]:
    """Documents of one length; every token is its place in the text."""
    for start in range(0, tokens, document):
        yield Piece(ids=range(start, min(start + document, tokens)))


def values(tokens: torch.Tensor) -> set[int]:
    return set(tokens.flatten().tolist())


@settings(max_examples=15, deadline=None)
@given(
    held_out=st.integers(1, 9),
    measure=st.integers(0, 20),
    factor=st.integers(2, 6),
    seed=st.randoms(use_true_random=False),
)
def test_no_document_is_on_two_sides(held_out: int, measure: int, factor: int, seed: object) -> None:
    fit, reserved = 7 * held_out, min(RESERVED, max(1, 2 * held_out))
    total = factor * (8 * held_out + reserved) * LENGTH
    smallest = factor * min(held_out, reserved) * LENGTH // min(4, held_out)
    lengths = [seed.randint(1, max(1, smallest // 4)) for _ in range(total)]  # type: ignore[attr-defined]
    drawn = draw(numbered(lengths), wanted(fit, held_out, measure), seed=0)
    sides = [values(drawn.fit), values(drawn.held_out), values(drawn.measure)]
    assert len(set.union(*sides)) == sum(map(len, sides))
    assert (len(drawn.fit), len(drawn.held_out)) == (fit, held_out)
    assert min(measure, reserved) <= len(drawn.measure) <= measure


def test_all_of_the_text_is_covered_in_blocks() -> None:
    """Each quarter has its part of the fit sequences, without gaps, and of the held-out ones, side by side."""
    tokens, seeds = 600 * LENGTH, range(3)
    for drawn in (draw(counted(tokens), wanted(112, 16, 16), seed=seed) for seed in seeds):
        found = sorted(
            [(int(row[0]), "fit") for row in drawn.fit] + [(int(row[0]), "held_out") for row in drawn.held_out]
        )
        for quarter in range(4):
            within = [kind for place, kind in found if quarter <= 4 * place / tokens < quarter + 1]
            assert within.count("fit") == 28
            assert within.count("held_out") == 4
        assert sum(one != other for (_, one), (_, other) in pairwise(found)) <= 8, "two in each quarter"
        fit = [place for place, kind in found if kind == "fit"]
        region = 600 / (128 + 16)  # how much the regions have grown
        gaps = [other - one for one, other in pairwise(fit)]
        assert sum(gap > 2 * math.ceil(region) * LENGTH for gap in gaps) == 3, "only between the periods"
        rows = torch.cat([drawn.fit, drawn.held_out, drawn.measure])
        assert len(values(rows)) == rows.numel(), "each comes once"
        assert int((rows.diff(dim=1) != 1).any(dim=1).sum()) <= 12, "a stretch of the text, but where a region ends"


@pytest.mark.parametrize("sequences", [64, 65, 80, 2000])
def test_the_seed_decides_and_what_measures_changes_nothing_of_what_calibrates(sequences: int) -> None:
    measures = (0, 1, 16, 500) if sequences > 64 else (0, 0)
    first, *others = (draw(counted(sequences * LENGTH + 3), wanted(56, 8, measure), seed=5) for measure in measures)
    for one in others:
        assert torch.equal(one.fit, first.fit)
        assert torch.equal(one.held_out, first.held_out)
    assert not torch.equal(draw(counted(sequences * LENGTH + 3), wanted(56, 8), seed=6).fit, first.fit)


def test_only_so_much_of_a_long_text_is_read() -> None:
    def endless() -> Iterator[Piece]:
        number = 0
        while True:
            yield Piece(ids=[number] * 5)
            number += 1

    drawn = draw(endless(), wanted(7, 1), seed=0)
    assert 0.6 * READ_FOR_EACH * 8 * LENGTH / 5 < max(values(drawn.fit)) <= (READ_FOR_EACH * 8 + RESERVED) * LENGTH / 5
    drawn = draw(endless(), wanted(7, 1, 300), seed=0)
    assert len(drawn.measure) == 300, "more is read for what measures"


@pytest.mark.parametrize(("sequences", "measure"), [(8, 0), (9, 1), (11, 2)])
def test_a_text_that_is_just_long_enough(sequences: int, measure: int) -> None:
    drawn = draw(counted(sequences * LENGTH), wanted(7, 1, 16 if measure else 0), seed=0)
    assert (len(drawn.fit), len(drawn.held_out), len(drawn.measure)) == (7, 1, measure)
    rows = torch.cat([drawn.fit, drawn.held_out, drawn.measure])
    assert len(values(rows)) == rows.numel()


def test_no_calibration_text_at_all_may_be_wanted() -> None:
    """The model generates everything itself."""
    drawn = draw(counted(10 * LENGTH), wanted(0, 0, 16), seed=0)
    assert (drawn.fit.shape, drawn.held_out.shape) == ((0, LENGTH), (0, LENGTH))
    assert sorted(row[0] for row in drawn.measure.tolist()) == list(range(0, 10 * LENGTH, LENGTH))


def test_paragraphs_belong_to_the_title_before_them_or_to_their_neighbours() -> None:
    """Without titles an edge is after every third paragraph of 3 tokens at the earliest."""
    articles = [
        Piece(ids=[article] * (3 if paragraph == 0 else 6), is_title=paragraph == 0)
        for article in range(60)
        for paragraph in range(6)
    ]
    untitled = [Piece(ids=[number // 3] * 3) for number in range(600)]
    for pieces, grouped in ((articles, True), (articles, False), (untitled, True)):
        drawn = draw(pieces, wanted(28, 4, 8, grouped=grouped), seed=0)
        sides = [values(drawn.fit), values(drawn.held_out), values(drawn.measure)]
        assert len(set.union(*sides)) == sum(map(len, sides))


def test_too_few_tokens_says_how_many_there_are_and_are_needed() -> None:
    with pytest.raises(CalibrationTooSmall) as caught:
        draw(counted(80), wanted(7, 1, 4, length=16), seed=0)
    assert str(caught.value) == (
        "the calibration text has 80 tokens, which fill 5 sequences of 16; 8 x 16 = 128 are needed and 16 more to "
        "evaluate on: give more text, or ask for at most 4 samples"
    )
    assert caught.value.field == "calibration.samples"
    count = SequenceCounts(fit=14, held_out=2, measure=0)
    several = Wanted(count=count, length=16, samples=64, called=" org/a")
    with pytest.raises(CalibrationTooSmall, match=r"text org/a has 80 tokens.* 16 x 16 = 256 are.* at most 20 samples"):
        draw(counted(80), several, seed=0)
    with pytest.raises(CalibrationTooSmall, match=r"has 3 tokens, which fill 0 sequences of 16; .*: give more text$"):
        draw(counted(3), wanted(1, 1, length=16), seed=0)


@pytest.mark.parametrize(
    ("tokens", "borders", "starts"),
    [
        (1000, [0, 260], [0, 800, 900]),  # no border is near: a document is cut
        (1000, [0, 260, 770, 948], [0, 770, 948]),
        (100, [0, 79, 83], [0, 80, 90]),  # the text is just long enough
        (104, [0, 79, 85], [0, 84, 94]),
        (120, [0, 95, 99, 108], [0, 95, 108]),  # 95 leaves 12 + 1 to what is held out
    ],
)
def test_regions_end_at_a_near_border_that_leaves_each_side_enough(
    tokens: int, borders: list[int], starts: list[int]
) -> None:
    found = regions(tokens, borders, needs=(8, 1, 1), body=10)
    assert [one.kind for one in found] == ["fit", "held_out", "measure"]
    assert [one.start for one in found] == starts
    assert [one.end for one in found] == [*starts[1:], tokens]
