"""How many sequences each text gives, and which: whole documents on either side."""

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaceme_core.engine.text.drawing import (
    Piece,
    SequenceCounts,
    TokenSet,
    Wanted,
    draw,
    regions,
    sequence_counts,
)
from replaceme_core.errors import CalibrationTooSmall
from replaceme_core.request.calibration import held_out_samples
from replaceme_core.request.defaults import READ_FOR_EACH, RESERVED
from replaceme_core.request.method import Method
from replaceme_core.request.resolve import ResolvedCalibration


def calibration(samples: int, **fields: object) -> ResolvedCalibration:
    return ResolvedCalibration.model_validate({"samples": samples, "max_length": 16, **fields})


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [
        (64, 0.0, [(56, 8)]),
        (64, 1.0, [(0, 4), (56, 8)]),
        (9, 0.25, [(6, 1), (2, 0)]),
    ],
)
def test_own_text_beside_one_dataset(samples: int, share: float, expected: list[tuple[int, int]]) -> None:
    found = sequence_counts(calibration(samples, dataset="org/a", self_generated=share), measure=0)
    assert [(one.fit, one.held_out) for one in found] == expected


@pytest.mark.parametrize(("samples", "length", "judging"), [(64, 512, 4), (1024, 1024, 11), (64, 6000, 2)])
def test_a_text_that_only_judges_has_sequences_beside_the_samples(samples: int, length: int, judging: int) -> None:
    fields = {"samples": samples, "max_length": length, "self_generated": 0.0, "judged_on": "builtin:code"}
    of_text, of_judge = sequence_counts(ResolvedCalibration.model_validate({"dataset": "org/a", **fields}), measure=16)
    assert of_text.fit + of_text.held_out == samples
    assert (of_judge.fit, of_judge.held_out, of_judge.measure) == (0, judging, 4)


@pytest.mark.parametrize(("samples", "length", "share", "own"), [(64, 512, 0.125, (7, 4)), (64, 512, 0.5, (28, 4))])
def test_own_text_judges_with_as_many_sequences_as_another_text(
    samples: int, length: int, share: float, own: tuple[int, int]
) -> None:
    """Beside the samples where its share of the held-out ones would be fewer."""
    fields = {"samples": samples, "max_length": length, "self_generated": share, "judged_on": "builtin:code"}
    found = ResolvedCalibration.model_validate({"dataset": "org/a", **fields})
    of_text, of_own, of_judge = sequence_counts(found, measure=0)
    assert (of_own.fit, of_own.held_out) == own
    assert of_judge.held_out == 4
    assert of_text.held_out == (7 if share == 0.125 else 4), "no more than its share: the text may be short"
    assert found.generating == sum(own)
    total = sum(one.fit + one.held_out for one in (of_text, of_own, of_judge))
    assert total == samples + found.beside_samples(Method.LEAST_SQUARES)


def test_every_text_measures_and_the_first_one_most() -> None:
    sources = [{"self_generated": True}, {"dataset": "org/a"}, {"dataset": "org/b"}]
    for measure, expected in ((16, [0, 16, 4]), (3, [0, 3, 1]), (0, [0, 0, 0])):
        found = sequence_counts(calibration(64, sources=sources), measure=measure)
        assert [one.measure for one in found] == expected


@settings(max_examples=40)
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
    found = sequence_counts(calibration(samples, sources=sources), measure=16)
    held_out = held_out_samples(samples)
    assert sum(one.held_out for one in found) == held_out
    assert sum(one.fit for one in found) == samples - held_out
    for source, share, one in zip(sources, shares, found, strict=True):
        assert "self_generated" in source or (one.fit >= 1 and one.held_out >= 1)
        for count, whole in ((one.fit, samples - held_out), (one.held_out, held_out)):
            assert abs(count - whole * share / total) < len(sources)


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


def places(tokens: TokenSet) -> list[tuple[int, str]]:
    """The first token of each calibration sequence and its kind, in the order of the text."""
    found = [(int(row[0]), "fit") for row in tokens.fit] + [(int(row[0]), "held_out") for row in tokens.held_out]
    return sorted(found)


@settings(max_examples=30, deadline=None)
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


@settings(max_examples=30, deadline=None)
@given(held_out=st.integers(1, 20), more=st.integers(0, 9000), document=st.integers(1, 400))
def test_held_out_sequences_lie_in_blocks(held_out: int, more: int, document: int) -> None:
    fit = 7 * held_out
    tokens = (8 * held_out) * LENGTH + more
    drawn = draw(counted(tokens, document=document), wanted(fit, held_out), seed=1)
    kinds = [kind for _, kind in places(drawn)]
    changes = sum(one != other for one, other in pairwise(kinds))
    assert changes <= 2 * min(4, held_out)


def test_all_of_the_text_is_covered() -> None:
    """Each twentieth part of the text has fit sequences, apart from what lies in other regions; each quarter both."""
    tokens = 600 * LENGTH
    for seed in range(3):
        drawn = draw(counted(tokens), wanted(112, 16, 16), seed=seed)
        found = places(drawn)
        for quarter in range(4):
            within = [kind for place, kind in found if quarter <= 4 * place / tokens < quarter + 1]
            assert within.count("fit") == 28
            assert within.count("held_out") == 4
        fit = [place for place, kind in found if kind == "fit"]
        region = 600 / (128 + 16)  # how much the regions have grown
        gaps = [other - one for one, other in pairwise(fit)]
        assert sum(gap > 2 * math.ceil(region) * LENGTH for gap in gaps) == 3, "only between the periods"


def test_each_sequence_is_a_stretch_of_the_text_and_comes_once() -> None:
    drawn = draw(counted(400 * LENGTH), wanted(56, 8, 16), seed=0)
    rows = torch.cat([drawn.fit, drawn.held_out, drawn.measure])
    assert len(values(rows)) == rows.numel()
    broken = (rows.diff(dim=1) != 1).any(dim=1)
    assert int(broken.sum()) <= 12, "only where a region ends"


@pytest.mark.parametrize("sequences", [64, 65, 80, 2000])
def test_what_calibrates_does_not_depend_on_what_measures(sequences: int) -> None:
    found = []
    for measure in (0, 1, 16, 500):
        if sequences > 64 or measure == 0:
            found.append(draw(counted(sequences * LENGTH + 3), wanted(56, 8, measure), seed=5))
    assert all(torch.equal(one.fit, found[0].fit) for one in found)
    assert all(torch.equal(one.held_out, found[0].held_out) for one in found)


def test_the_seed_decides() -> None:
    one, same, other = (draw(counted(3000), wanted(28, 4, 8), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.fit, same.fit)
    assert torch.equal(one.measure, same.measure)
    assert not torch.equal(one.fit, other.fit)


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


def test_every_sequence_begins_with_the_prefix() -> None:
    drawn = draw(counted(2000), wanted(7, 1, 4, prefix=[-1]), seed=0)
    for part in (drawn.fit, drawn.held_out, drawn.measure):
        assert part.shape[1] == LENGTH
        assert part[:, 0].tolist() == [-1] * len(part)
        assert -1 not in values(part[:, 1:])


def test_paragraphs_belong_to_the_title_before_them() -> None:
    """In each article a title and many short paragraphs, all of which are one document."""
    pieces = [
        Piece(ids=[article] * (3 if paragraph == 0 else 6), is_title=paragraph == 0)
        for article in range(60)
        for paragraph in range(6)
    ]
    for grouped in (True, False):
        drawn = draw(pieces, wanted(28, 4, 8, grouped=grouped), seed=0)
        sides = [values(drawn.fit), values(drawn.held_out), values(drawn.measure)]
        assert len(set.union(*sides)) == sum(map(len, sides))


def test_paragraphs_without_titles_are_grouped_to_the_length_of_a_sequence() -> None:
    """A paragraph of 3 tokens: an edge is after every third one at the earliest."""
    pieces = [Piece(ids=[number] * 3) for number in range(600)]
    drawn = draw(pieces, wanted(28, 4, 8, grouped=True), seed=0)
    sides = [{value // 3 for value in values(part)} for part in (drawn.fit, drawn.held_out, drawn.measure)]
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


needs = st.tuples(st.integers(1, 60), st.integers(1, 12), st.integers(0, 16))


def test_a_document_is_cut_where_no_border_is_near() -> None:
    found = regions(1000, [0, 260], needs=(8, 1, 1), body=10)
    assert [(one.kind, one.start, one.end) for one in found] == [
        ("fit", 0, 800),
        ("held_out", 800, 900),
        ("measure", 900, 1000),
    ]
    moved = regions(1000, [0, 260, 770, 948], needs=(8, 1, 1), body=10)
    assert [(one.start, one.end) for one in moved] == [(0, 770), (770, 948), (948, 1000)]


def test_a_border_that_leaves_a_side_too_little_is_not_taken() -> None:
    found = regions(100, [0, 79, 83], needs=(8, 1, 1), body=10)
    assert [one.start for one in found] == [0, 80, 90], "the text is just long enough"
    found = regions(104, [0, 79, 85], needs=(8, 1, 1), body=10)
    assert [one.start for one in found] == [0, 84, 94]
    found = regions(120, [0, 95, 99, 108], needs=(8, 1, 1), body=10)
    assert [one.start for one in found] == [0, 95, 108], "95 leaves 12 + 1 to what is held out"
