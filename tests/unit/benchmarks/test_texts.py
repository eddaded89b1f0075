"""Texts for benchmarks: WikiText becomes ordinary text, and pieces of several texts are mixed in one file."""

import pytest

from benchmarks.mix import CHARACTERS, mix
from benchmarks.wikitext import FIT_SHARE, detokenise, split


@pytest.mark.parametrize(
    ("tokens", "plain"),
    [
        (" = Homarus gammarus = ", "= Homarus gammarus ="),
        (" = = = Early life = = = ", "=== Early life ==="),
        ("a hard @-@ shelled one", "a hard-shelled one"),
        ("1 @,@ 000 and 0 @.@ 7 kg", "1,000 and 0.7 kg"),
        ("length ( 24 in ) , and", "length (24 in), and"),
        ('only becoming " lobster red " on cooking .', 'only becoming "lobster red" on cooking.'),
        ('He said , " It is so . " Then', 'He said, "It is so." Then'),
        ("the lobster 's claws do n't", "the lobster's claws don't"),
        ("Linnaeus ' concept", "Linnaeus' concept"),
        ("5 – 6 kilograms", "5–6 kilograms"),
        ("a <unk> lobster", "a <unk> lobster"),
        ("x = y + 1", "x = y + 1"),
        ("", ""),
    ],
)
def test_detokenise(tokens: str, plain: str) -> None:
    assert detokenise(tokens) == plain


def test_lines_stay_lines() -> None:
    assert detokenise(" one . \n \n two , three \n") == "one.\n\ntwo, three\n"


def test_the_cut_is_at_a_line_end_and_loses_nothing() -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    fit, measure = split(text)
    assert fit + measure == text
    assert fit.endswith("\n")
    assert 0 <= FIT_SHARE * len(text) - len(fit) < len("line 1000\n")


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
