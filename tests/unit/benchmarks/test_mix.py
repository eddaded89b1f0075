"""A file out of several texts: a number of pieces of each, none twice, the same each time."""

import pytest

from benchmarks.mix import CHARACTERS, mix, unwrap

ONE, OTHER = "a" * (5 * CHARACTERS), "".join(str(number % 10) * CHARACTERS for number in range(6))


def test_pieces_of_each_text_shuffled() -> None:
    found = mix([(ONE, 3), (OTHER, 6)])
    assert [len(piece) for piece in found] == [CHARACTERS] * 9
    assert sum(piece[0] == "a" for piece in found) == 3
    assert sorted(piece[0] for piece in found if piece[0] != "a") == list("012345")
    assert found != sorted(found)
    assert found == mix([(ONE, 3), (OTHER, 6)])


def test_a_text_that_is_too_short_is_named() -> None:
    with pytest.raises(SystemExit, match="text 2 has 6 pieces of 2300 characters, 7 are needed"):
        mix([(ONE, 1), (OTHER, 7)])


def test_a_text_with_a_long_line_was_not_wrapped() -> None:
    long = "word " * 40 + "\nnext"
    assert unwrap(long) == long
