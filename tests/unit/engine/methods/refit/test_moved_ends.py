"""Sets of blocks one move away from those that were chosen."""

import pytest

from replaceme_core.engine.methods.refit_choice import neighbours
from replaceme_core.engine.model.changes import runs


@pytest.mark.parametrize("removed", [[3, 4, 5, 6, 12, 13, 14, 15], [4, 9], [3, 5, 7], [21, 22]])
def test_one_block_comes_back_and_another_goes(removed: list[int]) -> None:
    allowed = range(3, 23)
    found = neighbours(removed, allowed=allowed)
    assert found
    for blocks in found:
        assert len(blocks) == len(set(blocks)) == len(removed)
        assert len(set(blocks) - set(removed)) == 1
        assert set(blocks) <= set(allowed)
        assert len(runs(blocks)) <= len(runs(removed))


def test_a_block_in_the_middle_of_a_run_stays_away() -> None:
    assert all({4, 5} <= set(blocks) for blocks in neighbours([3, 4, 5, 6], allowed=range(1, 9)))


def test_a_run_of_one_block_can_join_another() -> None:
    assert (3, 4, 5) in neighbours([3, 4, 9], allowed=range(1, 12))
