"""Regions of a text for the fit, the held-out tokens and the evaluation."""

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from replaceme_core.engine.text.drawing import KINDS, MOST_PERIODS, Region, regions

needs = st.tuples(st.integers(1, 60), st.integers(1, 12), st.integers(0, 16))


def sizes(found: list[Region]) -> dict[str, int]:
    return {kind: sum(one.end - one.start for one in found if one.kind == kind) for kind in KINDS}


@given(
    needs=needs | st.tuples(st.just(0), st.just(0), st.integers(1, 16)),
    body=st.integers(1, 20),
    more=st.integers(0, 3000),
    documents=st.lists(st.integers(1, 90), max_size=80),
)
def test_regions_cover_the_text_and_have_what_each_kind_needs(
    needs: tuple[int, int, int], body: int, more: int, documents: list[int]
) -> None:
    tokens = sum(needs) * body + more
    borders = [0, *(border for border in accumulate(documents) if border < tokens)]
    found = regions(tokens, borders, needs=needs, body=body)
    assert found[0].start == 0
    assert found[-1].end == tokens
    assert all(one.end == other.start and one.kind != other.kind for one, other in pairwise(found))
    assert all(one.end > one.start for one in found)
    for (kind, size), need in zip(sizes(found).items(), needs, strict=True):
        assert size >= need * body
        assert (size == 0) == (need == 0)
        assert sum(one.kind == kind for one in found) <= min(MOST_PERIODS, need)


@given(needs=needs, body=st.integers(1, 20), factor=st.integers(2, 9))
def test_regions_grow_alike_and_each_period_has_one(needs: tuple[int, int, int], body: int, factor: int) -> None:
    tokens = factor * sum(needs) * body
    found = regions(tokens, [], needs=needs, body=body)
    assert list(sizes(found).values()) == [factor * need * body for need in needs]
    periods = min(MOST_PERIODS, *needs[:2])
    edges = [tokens * period // periods for period in range(periods + 1)]
    for start, end in pairwise(edges):
        held_out = [one for one in found if one.kind == "held_out" and start - periods <= one.start < end]
        assert held_out, "each period has held-out tokens"


@given(needs=needs, body=st.integers(8, 20), factor=st.integers(2, 9), seed=st.randoms(use_true_random=False))
def test_edges_are_borders_of_documents_where_these_are_short(
    needs: tuple[int, int, int], body: int, factor: int, seed: object
) -> None:
    tokens = factor * sum(needs) * body
    smallest = min(one.end - one.start for one in regions(tokens, [], needs=needs, body=body))
    borders = [0]
    while borders[-1] < tokens:
        borders.append(borders[-1] + seed.randint(1, max(1, smallest // 4)))  # type: ignore[attr-defined]
    found = regions(tokens, borders[:-1], needs=needs, body=body)
    assert {one.start for one in found} <= set(borders)


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
