"""WikiText's tokens become ordinary text, and nothing is lost at the cut."""

import pytest

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
